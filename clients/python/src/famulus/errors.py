"""The errors of the client.

    FamulusError    a call was refused or failed, or a stream broke and could not be resumed
    └── GapError    events are missing from a stream, time and again
    ToolError       raised by your tools: its text is told to the model

Calls on the raw stubs raise `grpc.RpcError`; `FamulusError.from_rpc` tells what is in one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from famulus.v1.error_reason_pb2 import ErrorReason

DOMAIN = "famulus"
DETAILS_KEY = "grpc-status-details-bin"
# How gRPC words the end of a connection where it does not call it UNAVAILABLE.
BROKEN_TRANSPORT = (
    "RST_STREAM",
    "Stream removed",
    "Connection reset",
    "Socket closed",
    "GOAWAY",
    "Cancelling all calls",
)
# How gRPC words that the server's certificate is not to be trusted: it will not be a moment later either.
MISTRUST = (
    "CERTIFICATE_VERIFY_FAILED",
    "certificate signature failure",
    "Hostname Verification Check failed",
    "is not in peer certificate",
)
# All that a server says of a call which it cut off because it stops. What is cancelled here is told with other words.
CUT_OFF = "CANCELLED"
TRANSPORT_CODES = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request: its path (`assistant.tools[3].function.name`) and a sentence."""

    field: str
    description: str


class FamulusError(Exception):
    """A call was refused or failed.

    `code` is the gRPC status. `reason` is one of `famulus.v1.ErrorReason`: 0 if the service gave none (the connection
    failed, say) or one that this client does not know yet; `reason_name` is its name, such as `RATE_LIMITED`.
    `metadata` are the facts documented with the reason, `violations` the wrong fields, and `retry_after` the
    seconds after which the service invites another attempt.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason_name: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name}{f' / {reason_name}' if reason_name else ''}: {message}")
        self.message = message
        self.code = code
        self.reason_name = reason_name
        self.reason: ErrorReason.ValueType = (
            ErrorReason.Value(f"ERROR_REASON_{reason_name}")
            if f"ERROR_REASON_{reason_name}" in ErrorReason.keys()  # noqa: SIM118 (an enum wrapper is no dict)
            else ErrorReason.ERROR_REASON_UNSPECIFIED
        )
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> "FamulusError":
        """What a failed call says, with its details (google.rpc: ErrorInfo, BadRequest, RetryInfo)."""
        call = cast("grpc.Call", error)  # what both of grpc's clients raise has the methods of a call
        info, wrong, retry = ErrorInfo(), BadRequest(), RetryInfo()
        for detail in _status(call).details:
            for wanted in (info, wrong, retry):
                _unpack(detail.type_url, detail.value, wanted)
        ours = info.domain == DOMAIN
        return cls(
            call.details() or "no details",
            code=call.code(),
            reason_name=info.reason if ours else "",
            metadata=dict(info.metadata) if ours else {},
            violations=[Violation(each.field, each.description) for each in wrong.field_violations],
            retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        )

    @property
    def transient(self) -> bool:
        """Whether it is the connection or the replica that failed, so that the same call may go well elsewhere; or the
        credentials ran out in the middle of it, so that it may go well with fresh ones."""
        if self.code is grpc.StatusCode.UNAVAILABLE:
            return bool(self.reason_name) or not any(words in self.message for words in MISTRUST)
        if self.code is grpc.StatusCode.ABORTED:
            return self.reason == ErrorReason.ERROR_REASON_SLOW_CONSUMER
        if self.code is grpc.StatusCode.UNAUTHENTICATED:
            return self.reason == ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED
        by_transport = self.code in TRANSPORT_CODES and not self.reason_name
        return by_transport and (self.message == CUT_OFF or any(words in self.message for words in BROKEN_TRANSPORT))


class GapError(FamulusError):
    """After event `after`, event `received` came, again and again: what lies between is missing."""

    def __init__(self, *, after: int, received: int) -> None:
        super().__init__(f"event {received} came after event {after}", code=grpc.StatusCode.DATA_LOSS)
        self.after = after
        self.received = received

    @property
    def transient(self) -> bool:
        """A new stream, perhaps from another replica, may have what is missing."""
        return True


class ToolError(Exception):
    """Raise it in a tool to tell the model why the call failed. Of other exceptions the model sees the class only."""


def _status(call: grpc.Call) -> Status:
    """The status in the trailers; an empty one where there is none, or a damaged one."""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _unpack(type_url: str, value: bytes, into: ErrorInfo | BadRequest | RetryInfo) -> None:
    if type_url.rpartition("/")[2] != into.DESCRIPTOR.full_name:
        return
    try:
        into.ParseFromString(value)
    except DecodeError:
        into.Clear()
