"""Traces: which ones are made and where they go, as OpenTelemetry's own variables in the environment say."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from famulus_server.ports import UNTRACED, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

# The version of the semantic conventions that names and attributes follow.
_SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
_EXPORTERS = ("otlp", "console")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
# A collector that does not answer holds up a stop for no longer: with the calls that end before, that is within the 5 s
# which docs/configuration.md promises.
_FLUSH_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class TraceSettingError(Exception):
    """A variable says what cannot be done: its name, and what is wrong."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Traces:
    """The traces of one server, off unless the environment names an exporter or an endpoint.

    `open` it first. The rest of the variables is read by the SDK itself, which is imported only then.
    """

    def __init__(self, *, environ: Mapping[str, str], instance: str) -> None:
        """`instance` names this process, for those who look at traces of several."""
        self._environ = environ
        self._instance = instance
        self._provider: TracerProvider | None = None

    async def open(self) -> Tracer:
        """The tracer of the server. Raises TraceSettingError."""
        names = exporters(self._environ)
        if not names:
            return UNTRACED
        return await asyncio.to_thread(self._make, names)

    async def close(self) -> None:
        """Sends what there is to send, within 2 seconds."""
        if self._provider is None:
            return
        # Not in a thread that the end of the process waits for.
        flushing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, _FLUSH_SECONDS)
        if flushing.is_alive():
            _log.warning("traces not delivered", seconds=_FLUSH_SECONDS)

    def _make(self, names: Sequence[str]) -> Tracer:
        # Imported here: a server that traces nothing goes without.
        from importlib.metadata import version

        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from famulus_server.telemetry.spans import OtelTracer

        release = version("famulus-server")
        ours = Resource(
            {
                "service.name": "famulus",
                "service.version": release,
                "service.instance.id": self._instance,
            }
        )
        named = ours.merge(OTELResourceDetector().detect())
        # At exit there is no loop to wait on, and `close` has been called.
        self._provider = provider = TracerProvider(resource=Resource.create(named.attributes), shutdown_on_exit=False)
        for name in names:
            try:
                processor = BatchSpanProcessor(_exporter(name))
            except ValueError as error:
                raise TraceSettingError("OTEL_BSP_*", str(error)) from None
            provider.add_span_processor(processor)
        return OtelTracer(provider.get_tracer("famulus", release, _SCHEMA))


def exporters(environ: Mapping[str, str]) -> Sequence[str]:
    """The names of the exporters that the environment asks for; none: nothing is traced. Raises TraceSettingError."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        asked = "otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none"
    names = [name.strip() for name in asked.split(",")]
    if names == ["none"]:
        return ()
    for name in names:
        if name not in _EXPORTERS:
            raise TraceSettingError("OTEL_TRACES_EXPORTER", f"{name!r} is none of {', '.join(_EXPORTERS)}, none")
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), _PROTOCOL)
    if "otlp" in names and protocol != _PROTOCOL:
        where = next(name for name in _PROTOCOLS if environ.get(name))
        raise TraceSettingError(where, f"{protocol!r} is not supported: send {_PROTOCOL}, to port 4318 as a rule")
    return names


def _exporter(name: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
