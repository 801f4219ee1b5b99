"""Spans by OpenTelemetry: implements the port `Tracer` on a tracer of its API."""

from contextvars import Token
from types import TracebackType
from typing import Any, Self

import structlog
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from famulus_server.ports import Attributes, SpanKind

_KINDS = {
    SpanKind.SERVER: trace.SpanKind.SERVER,
    SpanKind.CLIENT: trace.SpanKind.CLIENT,
    SpanKind.INTERNAL: trace.SpanKind.INTERNAL,
}
_ERROR = trace.Status(trace.StatusCode.ERROR)
# W3C Trace Context alone: baggage is whatever somebody thought useful, and would go to all who come after.
_PROPAGATOR = TraceContextTextMapPropagator()


class OtelSpan:
    """Implements the port `Span`."""

    __slots__ = ("_context", "_logged", "_span")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._context: Token[Context] | None = None
        self._logged: dict[str, Token[Any]] = {}

    @property
    def traceparent(self) -> str:
        return _traceparent(self._span)

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def tell(self, event: str, attributes: Attributes) -> None:
        self._span.add_event(event, attributes)

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(_ERROR)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> Self:
        self._context = contexts.attach(trace.set_span_in_context(self._span))
        ids = self._span.get_span_context()
        self._logged = dict(
            structlog.contextvars.bind_contextvars(
                trace_id=trace.format_trace_id(ids.trace_id), span_id=trace.format_span_id(ids.span_id)
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        structlog.contextvars.reset_contextvars(**self._logged)
        if self._context is not None:
            contexts.detach(self._context)
        self.end()


class OtelTracer:
    """Implements the port `Tracer`."""

    on = True

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: str | None = None,
        state: str = "",
    ) -> OtelSpan:
        above = None
        if parent is not None:
            # From nothing: whatever is current here belongs to somebody else.
            given = {"traceparent": parent, "tracestate": state} if state else {"traceparent": parent}
            above = _PROPAGATOR.extract(given, Context())
        # What goes wrong is told by `fail`: an exception's own words are no part of a trace.
        span = self._tracer.start_span(
            name,
            above,
            _KINDS[kind],
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        return OtelSpan(span)

    def traceparent(self) -> str:
        return _traceparent(trace.get_current_span())


def _traceparent(span: trace.Span) -> str:
    ids = span.get_span_context()
    if not ids.is_valid:
        return ""
    return f"00-{trace.format_trace_id(ids.trace_id)}-{trace.format_span_id(ids.span_id)}-{ids.trace_flags:02x}"
