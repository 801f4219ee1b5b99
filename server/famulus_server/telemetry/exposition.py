"""The measurements over HTTP, as Prometheus asks for them: `/metrics`, in its text format or OpenMetrics."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from famulus_server.ports.metrics import CATALOGUE, Counter, Gauge, Histogram
from famulus_server.telemetry.metrics import Measurements, Snapshot, Spread

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PREFIX = "famulus_"
_PATH = "/metrics"
# Each has a thread. Prometheus needs one, or as many as there are of it.
_MOST_CONNECTIONS = 16
# For a request to come and for an answer to be taken; and for the event loop to say what it has.
_CLIENT_SECONDS = 5.0
_LOOP_SECONDS = 5.0

_KINDS: Mapping[type, Callable[..., Metric]] = MappingProxyType(
    {Counter: CounterMetricFamily, Gauge: GaugeMetricFamily, Histogram: HistogramMetricFamily}
)

_log = logging.getLogger(__name__)


class MetricsServer:
    """Serves measurements to anybody who can reach it. Start and stop it in the event loop that measures."""

    def __init__(self, *, host: str, port: int, measurements: Measurements) -> None:
        self._address = host, port
        self._measurements = measurements
        self._server: _Server | None = None

    def start(self) -> int:
        """Listens; returns the port, which the system chooses where 0 is asked for. Raises OSError where the address
        is taken."""
        loop = asyncio.get_running_loop()

        def snapshot() -> Snapshot:
            """Called by the threads of the server: what is measured belongs to the loop."""
            return asyncio.run_coroutine_threadsafe(self._snapshot(), loop).result(_LOOP_SECONDS)

        # Its own: one process may have several servers.
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Exposition(snapshot))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._server = _Server(self._address, _only_metrics(make_wsgi_app(registry)))
        loop.add_reader(self._server.fileno(), self._server.handle_request)
        return int(self._server.server_address[1])

    async def stop(self) -> None:
        """Answers nobody any more, and cuts off whoever is silent."""
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server.fileno())
            await asyncio.to_thread(self._server.end)

    async def _snapshot(self) -> Snapshot:
        return self._measurements.snapshot()


class _Exposition(Collector):
    """Our metrics as prometheus_client writes them."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[Metric]:
        """What `collect` gives, but for the values."""
        return (_family(metric) for metric in CATALOGUE)

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        for metric in CATALOGUE:
            family = _family(metric)
            if isinstance(metric, Histogram):
                for labels, spread in snapshot.spreads[metric].items():
                    family.add_metric(labels, _buckets(metric, spread), spread.total)
            else:
                for labels, value in snapshot.values[metric].items():
                    family.add_metric(labels, value)
            yield family


def _family(metric: Counter | Gauge | Histogram) -> Any:
    return _KINDS[type(metric)](_PREFIX + metric.name, metric.help, labels=metric.labels)


def _buckets(histogram: Histogram, spread: Spread) -> list[tuple[str, float]]:
    """What Prometheus calls buckets: how many values were at most so large."""
    total, buckets = 0, []
    for bound, count in zip((*histogram.buckets, float("inf")), spread.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets


def _only_metrics(app: "WSGIApplication") -> "WSGIApplication":
    """The app of prometheus_client answers any path, and waits for nothing."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        status, text = "404 Not Found", b"metrics are at /metrics\n"
        if environ["PATH_INFO"] == _PATH:
            try:
                return app(environ, start_response)
            except TimeoutError:
                status, text = "503 Service Unavailable", b"the server is too busy to tell\n"
        start_response(status, [("Content-Type", "text/plain")])
        return [text]

    return answer


class _Handler(WSGIRequestHandler):
    """One connection, which gets one answer."""

    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class gives it
        """Scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and no more of them than is sensible: the oldest gives way to a new one, so that
    nobody keeps others out by saying nothing, or a letter now and then."""

    # Joined at the end instead, after their connections were cut.
    daemon_threads = False
    # The event loop says when there is a connection to take, and does not wait for one.
    timeout = 0
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], app: "WSGIApplication") -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        # In the order in which they came.
        self._connections: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self.socket.setblocking(False)
        self.set_app(app)

    def server_bind(self) -> None:
        # Without the base class's look for a full name, which may wait for a name server.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._connections) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                _cut(oldest)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - a client's silence, or its end
        _log.debug("a scrape was not answered", exc_info=True)

    def end(self) -> None:
        """Returns once all threads have ended."""
        with self._lock:
            for connection in self._connections:
                _cut(connection)
        self.server_close()


def _cut(connection: socket.socket) -> None:
    """Has the thread that reads from it, or writes to it, end. Closing is up to that thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
