"""What a process has around its engine when it has neither Redis nor other replicas."""

from collections.abc import Callable, Mapping, Sequence

from famulus_server.engine.aftermath import Aftermath
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.feed import Feed
from famulus_server.engine.gate import Gate
from famulus_server.engine.ledger import Ledger
from famulus_server.engine.policy import Policies
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.engine.worker import Worker
from famulus_server.ports import Demand, EventBatch, Lease, Limit, Refused, Remembered, Store
from famulus_server.telemetry.metrics import Measurements


class NoEventLog:
    """Keeps nothing."""

    def publish(self, run_id: str, batches: Sequence[EventBatch]) -> None: ...
    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        return []

    async def read_many(self, cursors: Mapping[str, int], *, limit: int) -> Mapping[str, list[EventBatch]]:
        return {}

    def drop(self, run_id: str) -> None: ...


class NoThreadCache:
    """Remembers nothing."""

    async def get(self, tenant: str, thread_id: str) -> Remembered | None:
        return None

    def note_stale(self) -> None: ...
    def put(self, tenant: str, thread_id: str, remembered: Remembered) -> None: ...
    def forget(self, tenant: str, thread_id: str) -> None: ...


class NoHints:
    """Reaches nobody."""

    def send(self, topic: str, text: str = "") -> None: ...
    def listen(self, topic: str, heard: Callable[[str], None]) -> Callable[[], None]:
        return lambda: None


def ledger(store: Store, feed: Feed) -> Ledger:
    return Ledger(store=store, feed=feed, hints=NoHints(), metrics=run_metrics())


def run_metrics() -> RunMetrics:
    """Counts for nobody."""
    return RunMetrics(metrics=Measurements(), policies=Policies(), clock=SystemClock())


class NoLimiter:
    """Limits nothing."""

    async def take(
        self, demands: Sequence[Demand], *, holder: str = "", seconds: float = 0.0, key: str = ""
    ) -> Refused | None:
        return None

    def settle(self, demands: Sequence[Demand], *, key: str, used: int, holder: str = "") -> None: ...
    def release(self, limits: Sequence[Limit], *, holder: str) -> None: ...
    async def observe(self, limit: Limit, *, left: int) -> None: ...
    async def pause(self, limits: Sequence[Limit], *, seconds: float) -> None: ...


class NoExecutor:
    """Executes nothing: there are no slots."""


def aftermath(
    store: Store, *, event_log: NoEventLog | None = None, thread_cache: NoThreadCache | None = None
) -> Aftermath:
    """Nothing runs in this process."""
    feed = Feed(event_log=event_log or NoEventLog())
    cache, policies = thread_cache or NoThreadCache(), Policies()
    worker = Worker(
        store=store,
        feed=feed,
        ledger=ledger(store, feed),
        thread_cache=cache,
        executor=NoExecutor(),  # type: ignore[arg-type]
        hints=NoHints(),
        lease=Lease(owner="me", seconds=15.0),
        slots=0,
        policies=policies,
        metrics=run_metrics(),
        clock=SystemClock(),
    )
    gate = Gate(store=store, limiter=NoLimiter(), policies=policies)
    return Aftermath(thread_cache=cache, feed=feed, worker=worker, gate=gate)
