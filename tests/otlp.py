"""A collector of traces: OTLP over HTTP, as OpenTelemetry's exporters send it."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_PATIENCE = 20.0


@dataclass(frozen=True)
class Told:
    """A span as it arrived. Ids are hexadecimal, and `kind` is "SERVER" and the like."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: Mapping[str, Any]
    events: list[tuple[str, Mapping[str, Any]]]
    failed: bool
    resource: Mapping[str, Any]
    raw: bytes

    @property
    def traceparent(self) -> str:
        """Its name for those below it."""
        return f"00-{self.trace_id}-{self.span_id}-01"


class Collector:
    """Takes spans on a free port of this machine. With `answers=False` it takes them and never says so."""

    def __init__(self, *, answers: bool = True) -> None:
        self.spans: list[Told] = []
        self.headers: list[Mapping[str, str]] = []
        self._answers = asyncio.Event()
        if answers:
            self._answers.set()
        self._more = asyncio.Condition()
        self.asked = asyncio.Event()
        application = web.Application()
        application.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.set()
        await self._runner.cleanup()

    async def span(self, name: str, number: int = 1, **attributes: object) -> Told:
        """The span of this name, or that of this number among them, with these attributes, once it is there. An
        attribute's dots are written as double underscores."""
        return (await self.all(name, number, **attributes))[number - 1]

    async def all(self, name: str, number: int, **attributes: object) -> list[Told]:
        """All such spans, once there are so many, in the order of their arrival."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}

        def found() -> list[Told]:
            return [one for one in self.spans if one.name == name and wanted.items() <= one.attributes.items()]

        async with self._more:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._more.wait_for(lambda: len(found()) >= number)
        assert len(found()) >= number, f"{name} {wanted} is not among {[one.name for one in self.spans]}"
        return found()

    async def _take(self, request: web.Request) -> web.Response:
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        arrived = ExportTraceServiceRequest.FromString(await request.read())
        self.asked.set()
        await self._answers.wait()
        async with self._more:
            for resource in arrived.resource_spans:
                known = _plain(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans.extend(_told(span, known) for span in scope.spans)
            self._more.notify_all()
        return web.Response()


def trace_to(monkeypatch: pytest.MonkeyPatch, endpoint: str, **variables: str) -> None:
    """Servers that are opened from now on send their spans there, without keeping them for long."""
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"} | variables
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def _told(span: Span, resource: Mapping[str, Any]) -> Told:
    return Told(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        resource=resource,
        raw=span.SerializeToString(),
    )


def _plain(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(one) for one in value.array_value.values]
    return getattr(value, str(value.WhichOneof("value")))
