"""Strikes out of the log what must not get into it: secrets, known by their names or their shapes, and the values that
PostgreSQL and its driver quote in their errors."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"

_NAME = re.compile(r"(?:.*[_-])?(?:authorization|api_?key|cookie|key|passw(?:or)?d|secret|token)", re.IGNORECASE)
# Any text has one of these, in lower case, in which there is one of the shapes below; most have none.
_HINT = re.compile("://|sk-|fam_|eyj|bearer|basic|key|authorization|passw|secret|token|detail:|query arg")
_SHAPES: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), rf"\1{REDACTED}")
    for pattern in (
        r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)",
        # Up to the last @: a password may have any character. Bounded, as a text may have many beginnings and no end.
        r"(?i)(://[^\s:/@]{0,256}:)\S{0,2048}(?=@)",
        r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{6,}",
        r"(?<![\w-])((?:sk-|fam_))[\w-]{6,}",
        r"\b(eyJ)[\w-]{6,}\.[\w-]+\.[\w-]*",
        # In JSON, in headers, in settings, in the parameters of a URL.
        r"""(?ix)\b((?:api[_-]?key|authorization|passw(?:or)?d|secret|token)["']?\s*[:=]\s*["']?)
            (?!bearer\s|basic\s)[^\s"',;&]+""",
        # Rows that a constraint refuses, and arguments of the wrong type.
        r"(\bDETAIL:\s+).+",
        r"(\binvalid input for query argument \$\d+: ).+",
    )
)


@lru_cache(maxsize=1_000)
def _is_secret(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


class Redaction:
    """Cleans values. `secrets` are further ones, of no known shape; short words are not looked for."""

    def __init__(self, *, secrets: Collection[str] = ()) -> None:
        # The longest first, as one may be the beginning of another.
        known = sorted((re.escape(secret) for secret in secrets if len(secret) >= 6), key=len, reverse=True)
        self._known = re.compile("|".join(known)) if known else None

    def of(self, name: str, value: Any) -> Any:
        """What may stand under a name in the log."""
        if value is not None and _is_secret(name):
            return REDACTED
        # Most are texts.
        return self._text(value) if type(value) is str else self.clean(value)

    def clean(self, value: Any) -> Any:
        """The value without secrets, down to the last text in it; objects become the text that shows them."""
        match value:
            case str():
                return self._text(value)
            case None | bool() | int() | float():
                return value
            case Mapping():
                return {self.clean(name): self.of(str(name), inner) for name, inner in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.clean(inner) for inner in value]
            case _:
                return self._text(repr(value))

    def _text(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        if _HINT.search(text.lower()):
            for shape, replacement in _SHAPES:
                text = shape.sub(replacement, text)
        return text
