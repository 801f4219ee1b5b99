"""What is counted where it happens, joined to the names under which it is shown; and the server that shows it."""

import contextlib
from collections.abc import Callable, Sequence
from importlib.metadata import version

from famulus_server.api.addresses import ListenError, taken, with_port
from famulus_server.api.server import ApiServer
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.engine.policy import Policies
from famulus_server.engine.retention import Sweeper
from famulus_server.engine.waiting_runs import WaitingRuns
from famulus_server.engine.worker import Worker
from famulus_server.models.breaker import Phase
from famulus_server.models.registry import ModelRegistry
from famulus_server.ports import Metrics
from famulus_server.ports import metrics as catalogue
from famulus_server.ports.metrics import Counter, Gauge, Values
from famulus_server.store.postgres import PostgresStore
from famulus_server.telemetry.metrics import Measurements
from famulus_server.wiring.stores import AnyStore

_PHASES = {Phase.CLOSED: 0.0, Phase.HALF_OPEN: 0.5, Phase.OPEN: 1.0}


async def serve_metrics(address: str, measurements: Measurements, stack: contextlib.AsyncExitStack) -> str:
    """Serves them until the stack is closed; returns the address, with the port that the system chose where 0 was asked
    for. Raises ListenError where it is taken. Without an address nothing is served."""
    if not address:
        return ""
    # Here, because not everybody needs it.
    from famulus_server.telemetry.exposition import MetricsServer

    host, _, port = address.rpartition(":")
    server = MetricsServer(host=host.strip("[]"), port=int(port), measurements=measurements)
    try:
        chosen = server.start()
    except (OSError, OverflowError):
        raise ListenError(taken(address)) from None
    stack.push_async_callback(server.stop)
    return with_port(address, chosen)


def show_process(metrics: Metrics, *, role: str, policies: Policies, server: ApiServer) -> None:
    """What this process is, and how it stands to its callers."""
    build: Values = {(version("famulus-server"), role): 1.0}
    metrics.show(catalogue.BUILD_INFO, lambda: build)
    metrics.show(catalogue.SETTINGS_INFO, lambda: {(policies.current.currency,): 1.0})
    _show_one(metrics, catalogue.READY, lambda: server.ready)
    _show_one(metrics, catalogue.DRAINING, lambda: server.draining)


def show_work(
    metrics: Metrics, *, worker: Worker, waiting: WaitingRuns, models: ModelRegistry, sweeper: Sweeper
) -> None:
    """What this process has to do, and who does it."""
    _show_one(metrics, catalogue.RUNS_EXECUTING, lambda: worker.slots - worker.free)
    _show_one(metrics, catalogue.WORKER_SLOTS, lambda: worker.slots)
    _show_one(metrics, catalogue.WORKER_FREE_SLOTS, lambda: worker.free)
    metrics.show(catalogue.QUEUE_RUNS, lambda: {(): waiting.last.runs} if waiting.last else {})
    metrics.show(catalogue.QUEUE_OLDEST_SECONDS, lambda: {(): waiting.last.oldest_seconds} if waiting.last else {})
    metrics.show(
        catalogue.BREAKER_OPEN, lambda: {(name,): _PHASES[one.phase] for name, one in models.breakers().items()}
    )
    metrics.show(catalogue.BREAKER_OPENINGS, lambda: {(name,): one.openings for name, one in models.breakers().items()})
    _show_one(metrics, catalogue.SWEEPER_THREADS, lambda: sweeper.threads)
    _show_one(metrics, catalogue.SWEEPER_TOMBSTONES, lambda: sweeper.tombstones)


def show_redis(
    metrics: Metrics,
    *,
    event_log: RedisEventLog,
    thread_cache: RedisThreadCache,
    limiter: RedisLimiter,
    patience: Patience,
) -> None:
    """What this process has of Redis."""

    def reads() -> Values:
        cache = thread_cache
        return {("hit",): cache.hits, ("miss",): cache.misses, ("stale",): cache.stale, ("error",): cache.errors}

    metrics.show(catalogue.THREAD_CACHE_READS, reads)
    _show_one(metrics, catalogue.THREAD_CACHE_WRITTEN_BYTES, lambda: thread_cache.bytes)
    _show_one(metrics, catalogue.EVENT_LOG_APPENDED, lambda: event_log.appended)
    _show_one(metrics, catalogue.EVENT_LOG_APPENDED_BYTES, lambda: event_log.bytes)
    _show_one(metrics, catalogue.EVENT_LOG_LOST, lambda: event_log.lost)
    _show_one(metrics, catalogue.EVENT_LOG_BACKLOG, lambda: event_log.backlog)
    metrics.show(catalogue.LIMITER_DECISIONS, lambda: dict(limiter.decisions))
    _show_one(metrics, catalogue.LIMITER_SHARED, lambda: limiter.is_shared)
    # The limiter asks it every other second, whether anybody calls or not.
    _show_one(metrics, catalogue.REDIS_REACHABLE, lambda: limiter.is_shared and patience.is_answered)


def show_stores(metrics: Metrics, stores: Sequence[AnyStore]) -> None:
    """What PostgreSQL's stores know of themselves. SQLite has one writer, whom nobody is in the way of."""
    pools = [store for store in stores if isinstance(store, PostgresStore)]
    if not pools:
        return

    def connections() -> Values:
        busy, idle = zip(*(pool.connections for pool in pools), strict=True)
        return {("busy",): sum(busy), ("idle",): sum(idle)}

    metrics.show(catalogue.STORE_CONNECTIONS, connections)
    metrics.show(catalogue.STORE_FAILURES, lambda: {("write", "conflict"): sum(pool.stats.conflicts for pool in pools)})


def _show_one(metrics: Metrics, metric: Counter | Gauge, read: Callable[[], float]) -> None:
    metrics.show(metric, lambda: {(): float(read())})
