"""The one place where errors become gRPC statuses."""

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Never

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.api.request_ids import REQUEST_ID_HEADER
from famulus_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FamulusError,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Violation,
)
from famulus_server.ports import Ids

_log = structlog.get_logger()

_CODES: Mapping[type[FamulusError], grpc.StatusCode] = MappingProxyType(
    {
        InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
        NotFound: grpc.StatusCode.NOT_FOUND,
        AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
        FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
        Aborted: grpc.StatusCode.ABORTED,
        OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
        Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
        ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Unavailable: grpc.StatusCode.UNAVAILABLE,
        Internal: grpc.StatusCode.INTERNAL,
    }
)
_OK = grpc.StatusCode.OK.name
_DETAILS_TRAILER = "grpc-status-details-bin"
_DOMAIN = "famulus"
_REASON_PREFIX = "ERROR_REASON_"
# The details travel in a trailer, and clients refuse more than 8 KiB of those.
_MOST_VIOLATION_BYTES = 3 * 1024
_MOST_MESSAGE_CHARACTERS = 300


class Errors:
    """The layer that finds out how a call ended, for the layers outside of it. No error passes it: the caller is told
    of it in the end. Nothing of a foreign exception's text gets out: the caller is told a reference, under which the
    log has the exception."""

    def __init__(self, *, ids: Ids) -> None:
        self._ids = ids

    def around(self, _: Method, proceed: Proceed) -> Proceed:
        async def find_end(call: Call) -> None:
            try:
                await proceed(call)
            except asyncio.CancelledError:
                call.code = _code_of_cancelled(call)
                raise
            except grpc.aio.AbortError:
                call.code = (call.context.code() or grpc.StatusCode.UNKNOWN).name
                raise
            except FamulusError as error:
                fail(call, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, its text must not reach the caller
                reference = self._ids.new("err")
                _log.exception("call failed", reference=reference, exception=type(error).__name__)
                fail(call, Internal(reference))
            else:
                call.code = _OK

        return find_end


def fail(call: Call, error: FamulusError) -> None:
    """The call ends with this error, once it has left all layers."""
    # Not the error itself, which would keep all frames that it came through, and they the call.
    call.code, call.reason, call.status = _code_of(error).name, _reason(error), status_of(error, call.error_facts)


async def tell(call: Call, status: Status) -> Never:
    """Ends a call that has failed."""
    # Trailers given to an abort replace those that were set before: so the request id is named again.
    trailers = ((REQUEST_ID_HEADER, call.request_id), (_DETAILS_TRAILER, status.SerializeToString()))
    await call.context.abort(grpc.StatusCode[call.code], status.message, trailers)


def status_of(error: FamulusError, facts: Mapping[str, str] | None = None) -> Status:
    """The google.rpc.Status of an error; `facts` join its metadata where it does not have them itself."""
    status = Status(code=_code_of(error).value[0], message=error.message[:_MOST_MESSAGE_CHARACTERS])
    for detail in _details(error, facts or {}):
        # Deterministic, so that equal refusals are equal byte for byte.
        status.details.add().Pack(detail, deterministic=True)
    return status


def _code_of(error: FamulusError) -> grpc.StatusCode:
    """The code of an error."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def _reason(error: FamulusError) -> str:
    return ErrorReason.Name(error.reason).removeprefix(_REASON_PREFIX)


def _details(error: FamulusError, facts: Mapping[str, str]) -> Sequence[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=_reason(error),
            domain=_DOMAIN,
            metadata={**facts, **error.metadata},
        )
    ]
    if error.violations:
        details.append(_bad_request(error.violations))
    if isinstance(error, NotFound):
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=error.resource_id)
        )
    if isinstance(error, ResourceExhausted):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=error.subject, description=error.description)
        details.append(quota)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(retry)
    return details


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    result = error_details_pb2.BadRequest()
    for violation in violations:
        result.field_violations.add(field=violation.field, description=violation.description)
        if result.ByteSize() > _MOST_VIOLATION_BYTES and len(result.field_violations) > 1:
            del result.field_violations[-1]
            break
    return result


def _code_of_cancelled(call: Call) -> str:
    """gRPC cancels what serves a call that was cancelled and one whose deadline has passed: only the clock tells them
    apart."""
    remaining = call.context.time_remaining()
    expired = remaining is not None and remaining <= 0
    return (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name
