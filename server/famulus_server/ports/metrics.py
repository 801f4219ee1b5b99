"""What is measured, and the port through which the engine and the adapters tell of it.

Names are those of docs/metrics.md without the prefix `famulus_`. Labels are bounded: methods of the API, words of its
enums, names of the operator's configuration; never a tenant, a user, a thread or a tool.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

# Values by the labels that they have, in the order of the metric's.
Values: TypeAlias = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, eq=False)
class Counter:
    """Something that only grows."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Gauge:
    """Something as it is now."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How values are spread. `buckets` are their inclusive upper bounds, in the unit of the name."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]


class Metrics(Protocol):
    """Where measurements go. Belongs to one event loop, never waits and never raises.

    Of a metric whose labels grow beyond bounds, all further ones are counted as `other`.
    """

    def add(self, counter: Counter, *labels: str, amount: float = 1.0) -> None:
        """Counts."""

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        """Notes one value."""

    def show(self, metric: Counter | Gauge, read: Callable[[], Values]) -> None:
        """Has `read` called, in the loop, whenever somebody looks: for what is counted elsewhere, or is not counted at
        all. What it leaves out is absent."""


_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_MODEL_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RUN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUEUE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# Calls
RPCS = Counter("rpcs_total", "RPCs that ended, with the code that their caller sees.", ("method", "code"))
RPC_SECONDS = Histogram("rpc_seconds", "How long unary RPCs took.", ("method",), _CALL_SECONDS)
RPCS_OPEN = Gauge("rpcs_open", "RPCs under way; those of WatchRun and StreamRun are open streams.", ("method",))
STREAM_EVENTS = Counter("stream_events_total", "Events sent to watchers.")
STREAM_RESPONSES = Counter("stream_responses_total", "Responses that carried them, heartbeats included.")

# Runs
RUNS_CREATED = Counter("runs_created_total", "Runs stored, by the model or route asked for.", ("model", "tier"))
RUNS_ENDED = Counter(
    "runs_ended_total",
    "Runs in a final state, each counted where that was stored.",
    ("state", "model", "variant", "tier"),
)
RUN_SECONDS = Histogram(
    "run_seconds", "From the creation of a run to its end.", ("state", "model", "variant", "tier"), _RUN_SECONDS
)
RUN_FIRST_EVENT_SECONDS = Histogram(
    "run_first_event_seconds",
    "From the creation of a run to the first thing that a model said.",
    ("model", "tier"),
    _RUN_SECONDS,
)
RUN_QUEUE_SECONDS = Histogram(
    "run_queue_seconds", "From the creation of a run to its first claim by a worker.", ("tier",), _QUEUE_SECONDS
)
RUN_ERRORS = Counter("run_errors_total", "Errors of failed runs.", ("code", "model"))
RUNS_DEGRADED = Counter("runs_degraded_total", "Ended runs that a fallback or a canned reply answered.", ("model",))
RUN_RATINGS = Counter("run_ratings_total", "Ratings of runs: good or bad.", ("rating",))
RUN_TAKEOVERS = Counter("run_takeovers_total", "Runs taken over from a worker that was lost.")

# Workers and their queue
RUNS_EXECUTING = Gauge("runs_executing", "Slots of this process that are busy.")
WORKER_SLOTS = Gauge("worker_slots", "Slots of this process.")
WORKER_FREE_SLOTS = Gauge("worker_free_slots", "Slots of this process that are free.")
QUEUE_RUNS = Gauge("queue_runs", "Runs in the database that wait for a worker; counted up to 10,000.")
QUEUE_OLDEST_SECONDS = Gauge("queue_oldest_seconds", "How long the oldest of them waits that has not begun.")

# Tokens and tools
TOKENS = Counter("tokens_total", "Tokens used, by the model that answered.", ("kind", "variant", "tier"))
COST = Counter("cost_total", "What they cost, in units of the currency.", ("variant", "tier"))
TOOL_CALLS = Counter("tool_calls_total", "Function calls that models made, most without a problem.", ("problem",))
TOOL_ROUNDS = Counter("tool_rounds_total", "Turns that ended with calls for the caller.")
TOOL_WAIT_SECONDS = Histogram("tool_wait_seconds", "From a model's calls to their outputs.", (), _RUN_SECONDS)

# Models
UPSTREAM_CALLS = Counter("upstream_calls_total", "Calls of models, and how they ended.", ("model", "result"))
UPSTREAM_FIRST_EVENT_SECONDS = Histogram(
    "upstream_first_event_seconds", "From a call of a model to what it said first.", ("model",), _MODEL_SECONDS
)
UPSTREAM_SECONDS = Histogram("upstream_seconds", "How long calls took that were completed.", ("model",), _MODEL_SECONDS)
UPSTREAM_RETRIES = Counter("upstream_retries_total", "Calls that were made again, and why.", ("model", "code"))
BREAKER_OPEN = Gauge("breaker_open", "Whether a model is spared: 1; by one call alone it is probed: 0.5.", ("model",))
BREAKER_OPENINGS = Counter("breaker_openings_total", "How often a model began to be spared.", ("model",))

# Limits
LIMITER_DECISIONS = Counter(
    "limiter_decisions_total",
    "What was asked of limits: granted, or refused, by the limit that refused.",
    ("scope", "quantity", "decision"),
)
LIMITER_SHARED = Gauge("limiter_shared", "1 where limits are shared through Redis, 0 where each replica has its share.")

# Redis
THREAD_CACHE_READS = Counter(
    "thread_cache_reads_total",
    "Threads looked up: hit or miss. Of the hits some are stale, and some misses are errors.",
    ("result",),
)
THREAD_CACHE_WRITTEN_BYTES = Counter("thread_cache_written_bytes_total", "Bytes written to the thread cache.")
EVENT_LOG_APPENDED = Counter("event_log_appended_total", "Events written to Redis.")
EVENT_LOG_APPENDED_BYTES = Counter("event_log_appended_bytes_total", "Bytes of the events written to Redis.")
EVENT_LOG_LOST = Counter("event_log_lost_total", "Events refused by Redis, or dropped while it was away.")
EVENT_LOG_BACKLOG = Gauge("event_log_backlog", "Events that wait to be written to Redis.")
REDIS_REACHABLE = Gauge("redis_reachable", "1 where Redis answers, 0 where it does not.")

# The database
STORE_SECONDS = Histogram(
    "store_seconds", "One unit of work, read or write, waiting included.", ("unit",), _STORE_SECONDS
)
STORE_FAILURES = Counter(
    "store_failures_total",
    "Units of work that the database did not do (unavailable), or undid to do them again (conflict).",
    ("unit", "reason"),
)
STORE_CONNECTIONS = Gauge("store_connections", "Connections to PostgreSQL: busy or idle.", ("state",))
SWEEPER_THREADS = Counter("sweeper_threads_total", "Threads deleted because their time was over.")
SWEEPER_TOMBSTONES = Counter("sweeper_tombstones_total", "Tombstones of deleted threads that were removed.")

# The process
BUILD_INFO = Gauge("build_info", "Always 1; the labels tell what this process is.", ("version", "role"))
SETTINGS_INFO = Gauge("settings_info", "Always 1; the label tells what costs are counted in.", ("currency",))
READY = Gauge("ready", "1 where `readiness` is SERVING.")
DRAINING = Gauge("draining", "1 from when the process was told to stop.")

CATALOGUE = tuple(metric for metric in globals().values() if isinstance(metric, Counter | Gauge | Histogram))
