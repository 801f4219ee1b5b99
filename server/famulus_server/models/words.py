"""What of a provider's own words may get into the log: names, never sentences, which may quote what a user said."""

import re

import structlog

_NAME = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,64}")
# A model that makes up a kind for each event fills neither the log nor the memory.
_MAX_KINDS = 100

_log = structlog.get_logger(__name__)


def read_name(word: object) -> str:
    """The word, if it is a short name or a number; else nothing."""
    text = str(word) if isinstance(word, str | int) else ""
    return text if _NAME.fullmatch(text) else ""


class UnknownKinds:
    """The kinds of events that one model sends and nobody here knows. The log is told once of each."""

    def __init__(self, *, model: str) -> None:
        self._model = model
        self._told: set[str] = set()

    def note(self, kind: object) -> None:
        """An event of this kind was ignored."""
        name = read_name(kind)
        if name in self._told or len(self._told) >= _MAX_KINDS:
            _log.debug("event of an unknown kind ignored", model=self._model, kind=name)
            return
        self._told.add(name)
        _log.warning("model sends events of an unknown kind", model=self._model, kind=name)
