"""Collecting what is wrong with the fields of a request."""

import re
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from famulus_server.errors import InvalidArgument, Violation

# Nobody reads more, and the answer has to fit into 8 KiB.
MOST_VIOLATIONS = 20

_MOST_ID = 128
_MOST_REQUEST_ID = 128
_MOST_PAIRS = 16
_MOST_KEY = 64
_MOST_VALUE = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PRINTABLE_ASCII = re.compile(r"[ -~]*")
# 0001-01-01 to 9999-12-31, as google.protobuf.Timestamp has it.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


class _Enum(Protocol):
    @property
    def DESCRIPTOR(self) -> EnumDescriptor: ...


class Fields:
    """The fields of one message of a request. Leaving its `with` block raises InvalidArgument if anything is wrong."""

    def __init__(self, prefix: str = "", violations: list[Violation] | None = None) -> None:
        self._prefix = prefix
        self._violations: list[Violation] = [] if violations is None else violations

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._violations:
            raise InvalidArgument.fields(self._violations)

    def at(self, name: str, index: int | None = None) -> "Fields":
        """The fields of a message inside this one."""
        return Fields(self._path(name) if index is None else f"{self._path(name)}[{index}]", self._violations)

    def wrong(self, name: str, description: str) -> None:
        """Notes that a field is wrong; an empty name means the message itself."""
        if len(self._violations) < MOST_VIOLATIONS:
            self._violations.append(Violation(self._path(name), description))

    def present(self, name: str, message: Any) -> bool:
        """Whether the request has the message that it must have."""
        if message.HasField(name):
            return True
        self.wrong(name, "is required")
        return False

    def id(self, name: str, value: str, *, required: bool = True) -> None:
        """An id. What merely looks unlike ours is not refused here: it names nothing, so it is not found."""
        if not value:
            if required:
                self.wrong(name, "is required")
        elif len(value) > _MOST_ID:
            self.wrong(name, f"must have at most {_MOST_ID} characters")
        elif _CONTROL.search(value):
            self.wrong(name, "must not contain control characters")

    def request_id(self, value: str) -> None:
        """A request id (AIP-155)."""
        if len(value) > _MOST_REQUEST_ID or not _PRINTABLE_ASCII.fullmatch(value):
            self.wrong("request_id", f"must be at most {_MOST_REQUEST_ID} printable ASCII characters")

    def text(self, name: str, value: str, *, most: int, required: bool = False) -> None:
        """A text, limited in characters."""
        if required and not value:
            self.wrong(name, "is required")
        elif len(value) > most:
            self.wrong(name, f"must have at most {most:,} characters")

    def within(self, name: str, value: float, least: float, most: float) -> None:
        """A number between two others, both allowed; NaN is not."""
        if not least <= value <= most:
            self.wrong(name, f"must be between {least:,} and {most:,}")

    def at_least(self, name: str, value: int, least: int) -> None:
        """A number that must not be smaller."""
        if value < least:
            self.wrong(name, f"must be at least {least}")

    def few(self, name: str, values: Collection[Any], most: int, *, least: int = 0) -> bool:
        """Whether a list has a permitted length; if not, there is no use in looking at its items."""
        if len(values) > most:
            self.wrong(name, f"must have at most {most} items")
        elif len(values) < least:
            self.wrong(name, "is required" if least == 1 else f"must have at least {least} items")
        else:
            return True
        return False

    def known(self, name: str, value: int, enum: _Enum, *, required: bool = False) -> None:
        """A value of an enum; 0, which stands for unspecified, only where that means something."""
        if value == 0 and required:
            self.wrong(name, "is required")
        elif value not in enum.DESCRIPTOR.values_by_number:
            self.wrong(name, "is not a known value")

    def metadata(self, name: str, pairs: Mapping[str, str]) -> None:
        """Metadata: up to 16 pairs of 64 and 512 characters."""
        if not self.few(name, pairs, _MOST_PAIRS):
            return
        for key, value in pairs.items():
            if not key:
                self.wrong(name, "must not have an empty key")
            elif len(key) > _MOST_KEY:
                self.wrong(name, f"must have keys of at most {_MOST_KEY} characters")
            elif len(value) > _MOST_VALUE:
                self.wrong(f'{name}["{key}"]', f"must have at most {_MOST_VALUE} characters")

    def time(self, name: str, value: Timestamp) -> None:
        """A moment that exists."""
        if not (_FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < 1_000_000_000):
            self.wrong(name, "is not a valid time")

    def page(self, request: Any, *, most_token: int = 512) -> None:
        """The size and token of a list request. Too large a size is no error; too small a one is."""
        self.at_least("page_size", request.page_size, 0)
        self.text("page_token", request.page_token, most=most_token)

    def _path(self, name: str) -> str:
        return f"{self._prefix}.{name}" if self._prefix and name else self._prefix or name
