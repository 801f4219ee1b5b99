"""One line in the log for every call, and a request id that ties all lines of a call together."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import structlog

from famulus_server.api.calls import Call
from famulus_server.api.request_ids import REQUEST_ID_HEADER, logged_id
from famulus_server.ports import Ids

_log = structlog.get_logger()
# Probes come every second or so: they are no news.
QUIET = ("/grpc.health.", "/grpc.reflection.")


class AccessLog:
    """The layer that logs method, code, duration, tenant and caller. Never anything of what was said."""

    def __init__(self, *, ids: Ids, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._ids = ids
        self._stopwatch = stopwatch

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        call.request_id = logged_id(call.context) or self._ids.new("req")
        call.context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))
        # For all that this task and those it starts log; it serves no other call.
        structlog.contextvars.bind_contextvars(request_id=call.request_id, method=call.method)
        started = self._stopwatch()
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            line = _log.debug if call.method.startswith(QUIET) else _log.info
            line(
                "call",
                code=code_of_end(call, cancelled=cancelled),
                milliseconds=round((self._stopwatch() - started) * 1_000, 1),
                tenant=call.caller.tenant if call.caller else None,
                caller=call.caller.name if call.caller else None,
            )


def code_of_end(call: Call, *, cancelled: bool) -> str:
    """The name of the code that a call ended with, as its caller sees it."""
    if not cancelled:
        return (call.context.code() or grpc.StatusCode.OK).name
    # gRPC cancels the handler in both cases and only the clock tells them apart.
    remaining = call.context.time_remaining()
    expired = remaining is not None and remaining <= 0
    return (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name
