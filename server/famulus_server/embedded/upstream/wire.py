"""What the two wire formats have in common: an answer is a list of events, some of them deltas, one the finish."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any, Protocol

from famulus_server.embedded.upstream.answer import Answer

Json = dict[str, Any]

CREATED = 1_764_000_000  # seconds; a constant, because equal requests get equal answers


class Mark(Flag):
    PLAIN = 0
    DELTA = auto()
    FINISH = auto()  # says how the answer ended
    LAST = auto()  # says that the stream ended


class Ending(Enum):
    """What happens to the connection after the last byte."""

    CLOSE = auto()  # the body ends as HTTP wants it to
    CUT = auto()  # closed in the middle of the body
    RESET = auto()
    HANG = auto()
    PINGS = auto()


@dataclass(slots=True)
class Event:
    data: Json | str  # text is sent as it is
    mark: Mark = Mark.PLAIN
    spoil: Callable[[bytes], bytes] | None = None  # damages the encoded event

    @property
    def is_delta(self) -> bool:
        return Mark.DELTA in self.mark


class Wire(Protocol):
    """Writes answers in one format."""

    def body(self, answer: Answer) -> Json:
        """The answer to a request that does not stream."""

    def events(self, answer: Answer) -> list[Event]:
        """The whole stream, with exactly one event marked FINISH and one marked LAST (it may be the same)."""

    def text_delta(self, answer: Answer, text: str) -> Event:
        """One more delta of the answer's text."""

    def error(self, message: str, code: str | None) -> Event:
        """An error in the middle of a stream."""

    def failed(self, answer: Answer, message: str, code: str | None) -> Event:
        """The report that the answer failed."""

    def encode(self, event: Event, sequence: int | None) -> bytes:
        """The bytes of one event, blank line included. `sequence` is None where the server numbers nothing."""


def hasten(events: list[Event]) -> None:
    """Move the first delta to the front, before whatever introduces it."""
    first = next((at for at, event in enumerate(events) if event.is_delta), None)
    if first is not None:
        events.insert(0, events.pop(first))


def drop_keys(value: Any, keys: frozenset[str]) -> Any:
    """A copy of the JSON value without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: drop_keys(part, keys) for key, part in value.items() if key not in keys}
    return [drop_keys(part, keys) for part in value] if isinstance(value, list) else value


def error_object(status: int, message: str, code: str | None = None, param: str | None = None) -> Json:
    """The body of every refusal."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    codes = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or codes.get(status)}}
