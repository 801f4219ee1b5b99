"""A span for every call, below the one that its caller names."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from famulus_server.api.access_log import QUIET, code_of_end
from famulus_server.api.calls import Call
from famulus_server.ports import SpanKind, Tracer

# The codes that the semantic conventions for RPC (1.45.0) call a server's errors; the others are its callers' affair.
_ERRORS = frozenset(
    code.name
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)


class Traces:
    """The layer that traces. It is around the access log, whose line so names the span; probes are not traced."""

    def __init__(self, *, tracer: Tracer) -> None:
        self._tracer = tracer

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        if call.method.startswith(QUIET):
            yield
            return
        named = dict(call.context.invocation_metadata() or ())
        method = call.method.removeprefix("/")
        with self._tracer.start(
            method,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
            parent=_text(named.get("traceparent")),
            state=_text(named.get("tracestate")),
        ) as span:
            cancelled = False
            try:
                yield
            except asyncio.CancelledError:
                cancelled = True
                raise
            finally:
                code = code_of_end(call, cancelled=cancelled)
                span.note({"rpc.status_code": code, "famulus.request_id": call.request_id})
                if code in _ERRORS:
                    span.fail(code)


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""
