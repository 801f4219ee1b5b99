"""An HTTP server that gives metrics as a replica does, of a process that this test plays."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    MetricsHandler,
    generate_latest,
)
from prometheus_client.registry import Collector

_POLL_SECONDS = 0.01
_COUNTERS = {
    "rpcs": ("method", "code"),
    "stream_events": (),
    "runs_created": ("model", "tier"),
    "runs_ended": ("state", "model", "variant", "tier"),
    "tokens": ("kind", "variant", "tier"),
    "cost": ("variant", "tier"),
    "upstream_retries": ("model", "code"),
    "limiter_decisions": ("scope", "quantity", "decision"),
    "thread_cache_reads": ("result",),
    "store_failures": ("unit", "reason"),
}
_GAUGES = {
    "rpcs_open": ("method",),
    "runs_executing": (),
    "worker_slots": (),
    "worker_free_slots": (),
    "queue_runs": (),
    "queue_oldest_seconds": (),
    "breaker_open": ("model",),
    "limiter_shared": (),
    "redis_reachable": (),
    "store_connections": ("state",),
    "ready": (),
    "draining": (),
}


class Metered:
    """The metrics of one replica, with the names that the server gives them."""

    def __init__(self, *, started_at: float = 1.0) -> None:
        self.registry = CollectorRegistry()
        self.counters = {
            name: Counter(f"famulus_{name}", "-", labels, registry=self.registry) for name, labels in _COUNTERS.items()
        }
        self.gauges = {
            name: Gauge(f"famulus_{name}", "-", labels, registry=self.registry) for name, labels in _GAUGES.items()
        }
        self.run_seconds = Histogram(
            "famulus_run_seconds", "-", ["state"], buckets=(0.1, 1, 10), registry=self.registry
        )
        self.first_event_seconds = Histogram(
            "famulus_run_first_event_seconds", "-", ["model"], buckets=(0.1, 1, 10), registry=self.registry
        )
        self.cpu = Counter("process_cpu_seconds", "-", registry=self.registry)
        Gauge("process_start_time_seconds", "-", registry=self.registry).set(started_at)
        Gauge("process_resident_memory_bytes", "-", registry=self.registry).set(123e6)
        Gauge("famulus_build_info", "-", ["version", "role"], registry=self.registry).labels("0.1.0", "all").set(1)
        Gauge("famulus_settings_info", "-", ["currency"], registry=self.registry).labels("EUR").set(1)
        self.gauges["ready"].set(1)

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Raises a counter."""
        counter = self.counters[name]
        (counter.labels(*labels) if labels else counter).inc(by)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        gauge = self.gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def count_scrapes(self) -> None:
        """From now on each scrape counts as one event."""
        events, registry = self.counters["stream_events"], self.registry

        class Counting(Collector):
            def collect(self) -> Iterator[Metric]:
                events.inc()
                return iter(())

        registry.register(Counting())

    def text(self) -> str:
        """What the replica says now."""
        return generate_latest(self.registry).decode()

    @contextmanager
    def served(self, port: int = 0) -> Iterator[str]:
        """The address, `host:port`, where it does; port 0 takes a free one."""
        with ThreadingHTTPServer(("127.0.0.1", port), MetricsHandler.factory(self.registry)) as server:
            thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,))
            thread.start()
            try:
                yield f"127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()
