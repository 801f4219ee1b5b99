"""What a provider's refusals and error events mean, as ModelErrors.

Their texts are for the log: a status and names. A provider's sentences stay out, since they quote keys and users.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

from famulus_server.errors import (
    ModelAuthenticationError,
    ModelError,
    ModelRateLimited,
    ModelRejectedRequest,
    ModelUnavailable,
)
from famulus_server.models.allowance import read_allowance
from famulus_server.models.words import read_name

_TRANSIENT = {408, 409, 425}
# Longer is no wait, but a date that somebody put there.
_LONGEST_WAIT = 3_600.0

# Words that providers use as `code` or `type` of an error. What is not here is taken for a passing failure.
_KINDS: dict[str, type[ModelError]] = {
    "rate_limit_exceeded": ModelRateLimited,
    "rate_limit_error": ModelRateLimited,
    "insufficient_quota": ModelRateLimited,
    "server_error": ModelUnavailable,
    "vector_store_timeout": ModelUnavailable,
    "invalid_api_key": ModelAuthenticationError,
    "authentication_error": ModelAuthenticationError,
    "permission_error": ModelAuthenticationError,
    "context_length_exceeded": ModelRejectedRequest,
    "invalid_request_error": ModelRejectedRequest,
    "model_not_found": ModelRejectedRequest,
    "exceed_context_size_error": ModelRejectedRequest,
}
_REJECTED_PREFIXES = ("invalid_", "image_", "unsupported_", "empty_image", "failed_to_download_image")


def from_status(status: int, headers: Mapping[str, str], body: object) -> ModelError:
    """The error for an HTTP status that is not 2xx. `body` is its JSON, decoded, if it had any."""
    error = body if isinstance(body, dict) else {}
    code = str(error.get("code") or error.get("type") or "")
    retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    if code == "insufficient_quota":
        retry = False  # a 429 that no waiting helps against
    return _of_status(status)(
        _describe(f"HTTP {status}", error),
        retry_after=read_retry_after(headers),
        retry=retry,
        allowance=read_allowance(headers),
        status=status,
    )


def from_error_object(error: Mapping[str, Any]) -> ModelError:
    """The error for an error in the middle of a stream: an object with `code`, `type` and `message`, all optional."""
    code, kind = error.get("code"), error.get("type")
    if isinstance(code, int):  # gateways put the HTTP status of their own upstream there
        return _of_status(code)(_describe("error event", error))
    found = _of_word(code) or _of_word(kind) or ModelUnavailable
    retry = False if code == "insufficient_quota" else None
    return found(_describe("error event", error), retry=retry)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait: retry-after-ms, or retry-after in seconds or as a date. More than an hour
    is as good as nothing said."""
    seconds = _read_wait(headers)
    return seconds if seconds is not None and seconds <= _LONGEST_WAIT else None


def _read_wait(headers: Mapping[str, str]) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    # Counted from the provider's own clock, so that ours may be wrong.
    until, now = _date(value), _date(headers.get("date"))
    return max((until - now).total_seconds(), 0.0) if until and now else None


def _of_status(status: int) -> type[ModelError]:
    if status in {401, 403}:
        return ModelAuthenticationError
    if status == 429:
        return ModelRateLimited
    return ModelUnavailable if status >= 500 or status in _TRANSIENT else ModelRejectedRequest


def _of_word(word: object) -> type[ModelError] | None:
    if not isinstance(word, str):
        return None
    return _KINDS.get(word) or (ModelRejectedRequest if word.startswith(_REJECTED_PREFIXES) else None)


def _describe(what: str, error: Mapping[str, Any]) -> str:
    names = {key: read_name(error.get(key)) for key in ("code", "type", "param")}
    return " ".join([what, *(f"{key}={name}" for key, name in names.items() if name)])


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if isfinite(number) and number >= 0 else None


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    # "-0000" is the header's way not to know its zone; HTTP has but one.
    return date if date.tzinfo else date.replace(tzinfo=UTC)
