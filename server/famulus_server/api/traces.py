"""A span for every call, below the one that its caller names."""

import grpc

from famulus_server.api.access_log import QUIET
from famulus_server.api.calls import Call, Method, Proceed
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

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        if method.name.startswith(QUIET):
            return proceed
        name = method.name.removeprefix("/")

        async def trace(call: Call) -> None:
            named = dict(call.headers)
            with self._tracer.start(
                name,
                SpanKind.SERVER,
                {"rpc.system.name": "grpc", "rpc.method": name},
                parent=_text(named.get("traceparent")),
                state=_text(named.get("tracestate")),
            ) as span:
                try:
                    await proceed(call)
                finally:
                    span.note({"rpc.status_code": call.code, "famulus.request_id": call.request_id})
                    if call.code in _ERRORS:
                        span.fail(call.code)

        return trace


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""
