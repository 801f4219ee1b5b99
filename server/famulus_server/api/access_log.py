"""One line in the log for every call, and a request id that ties all lines of a call together."""

import time
from collections.abc import Callable

import structlog

from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.api.request_ids import REQUEST_ID_HEADER, logged_id
from famulus_server.ports import Ids

# Probes come every second or so: they are no news.
QUIET = ("/grpc.health.", "/grpc.reflection.")


class AccessLog:
    """The layer that logs method, code, duration, tenant and caller. Never anything of what was said."""

    def __init__(self, *, ids: Ids, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._ids = ids
        self._stopwatch = stopwatch

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        # Bound here, once: otherwise structlog would make a logger for each line.
        logger = structlog.get_logger().bind()
        line = logger.debug if method.name.startswith(QUIET) else logger.info

        async def log(call: Call) -> None:
            call.request_id = logged_id(call.headers) or self._ids.new("req")
            call.context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))
            # For all that this task and those it starts log; it serves no other call.
            structlog.contextvars.bind_contextvars(request_id=call.request_id, method=call.method)
            started = self._stopwatch()
            try:
                await proceed(call)
            finally:
                line(
                    "call",
                    code=call.code,
                    milliseconds=round((self._stopwatch() - started) * 1_000, 1),
                    tenant=call.caller.tenant if call.caller else None,
                    caller=call.caller.name if call.caller else None,
                )

        return log
