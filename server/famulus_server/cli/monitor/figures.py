"""The figures that are shown. Rates are per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from famulus_server.cli.monitor.change import Change, quantile
from famulus_server.telemetry.scrape import Scrape

_STREAMS = ("RunService/WatchRun", "RunService/StreamRun")
# The others are what callers do, or are told.
_OUR_FAULTS = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS")
_SECONDS_PER_HOUR = 3_600
_P50, _P95 = 0.5, 0.95


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica; what is a rate is None until it was seen twice."""

    name: str
    problem: str = ""  # why it gives no metrics; then all else is empty
    role: str = ""
    version: str = ""
    state: str = ""  # ready, draining, or not ready
    slots: int = 0
    slots_busy: int = 0
    slots_free: int = 0
    streams: int = 0
    rpcs: float | None = None
    events: float | None = None
    errors: float | None = None  # calls that ended for a fault of the server's
    memory_bytes: float = 0.0
    cpu: float | None = None  # cores
    redis_reachable: bool = False
    limits_shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All replicas together; what is a rate or a quantile is None where there is nothing to take it from."""

    replicas: int
    reachable: int
    queue_runs: float | None = None
    queue_oldest_seconds: float | None = None
    runs_created: float | None = None
    runs_ended: Mapping[str, float] = field(default_factory=dict)  # by state
    success: float | None = None  # the share of completed ones of those that nobody cancelled
    first_event_p50: float | None = None
    first_event_p95: float | None = None
    run_seconds_p50: float | None = None
    run_seconds_p95: float | None = None
    tokens: Mapping[str, float] = field(default_factory=dict)  # by kind
    cost_per_hour: float | None = None
    currency: str = ""
    retries: float | None = None
    refusals: Mapping[str, float] = field(default_factory=dict)  # by scope of the limit
    breakers: Mapping[str, str] = field(default_factory=dict)  # of models that are not closed everywhere
    cache_hits: float | None = None  # the share of reads that found what still held
    redis_reached_by: int = 0
    limits_shared_by: int = 0
    store_failures: float | None = None
    store_busy: int = 0  # connections
    store_idle: int = 0


def of_replica(name: str, scrape: Scrape, change: Change | None) -> Replica:
    """What one replica says."""
    changes = [change] if change else []
    draining, ready = scrape.total("famulus_draining"), scrape.total("famulus_ready")
    return Replica(
        name=name,
        role=scrape.label("famulus_build_info", "role"),
        version=scrape.label("famulus_build_info", "version"),
        state="draining" if draining else "ready" if ready else "not ready",
        slots=int(scrape.total("famulus_worker_slots")),
        slots_busy=int(scrape.total("famulus_runs_executing")),
        slots_free=int(scrape.total("famulus_worker_free_slots")),
        streams=int(sum(scrape.total("famulus_rpcs_open", method=method) for method in _STREAMS)),
        rpcs=_sum("famulus_rpcs_total", changes),
        events=_sum("famulus_stream_events_total", changes),
        errors=sum(change.rate("famulus_rpcs_total", code=code) for code in _OUR_FAULTS) if change else None,
        memory_bytes=scrape.total("process_resident_memory_bytes"),
        cpu=_sum("process_cpu_seconds_total", changes),
        redis_reachable=scrape.total("famulus_redis_reachable") > 0,
        limits_shared=scrape.total("famulus_limiter_shared") > 0,
    )


def of_fleet(number: int, scrapes: Sequence[Scrape], changes: Sequence[Change]) -> Fleet:
    """What all replicas say, of `number` that there should be."""
    ended = _counts("famulus_runs_ended_total", "state", changes)
    cost = _sum("famulus_cost_total", changes)
    return Fleet(
        replicas=number,
        reachable=len(scrapes),
        # Each tells of the whole database, unless it cannot reach it.
        queue_runs=_highest("famulus_queue_runs", scrapes),
        queue_oldest_seconds=_highest("famulus_queue_oldest_seconds", scrapes),
        runs_created=_sum("famulus_runs_created_total", changes),
        runs_ended=_rates("famulus_runs_ended_total", "state", changes),
        success=_share(ended, "completed", of_no_account="cancelled"),
        first_event_p50=quantile(_P50, "famulus_run_first_event_seconds", changes),
        first_event_p95=quantile(_P95, "famulus_run_first_event_seconds", changes),
        run_seconds_p50=quantile(_P50, "famulus_run_seconds", changes),
        run_seconds_p95=quantile(_P95, "famulus_run_seconds", changes),
        tokens=_rates("famulus_tokens_total", "kind", changes),
        cost_per_hour=None if cost is None else cost * _SECONDS_PER_HOUR,
        currency=next((scrape.label("famulus_settings_info", "currency") for scrape in scrapes), ""),
        retries=_sum("famulus_upstream_retries_total", changes),
        refusals=_rates("famulus_limiter_decisions_total", "scope", changes, decision="refused"),
        breakers=_breakers(scrapes),
        cache_hits=_cache_hits(changes),
        redis_reached_by=sum(scrape.total("famulus_redis_reachable") > 0 for scrape in scrapes),
        limits_shared_by=sum(scrape.total("famulus_limiter_shared") > 0 for scrape in scrapes),
        store_failures=_sum("famulus_store_failures_total", changes),
        store_busy=int(sum(scrape.total("famulus_store_connections", state="busy") for scrape in scrapes)),
        store_idle=int(sum(scrape.total("famulus_store_connections", state="idle") for scrape in scrapes)),
    )


def _sum(name: str, changes: Sequence[Change]) -> float | None:
    return sum(change.rate(name) for change in changes) if changes else None


def _counts(name: str, label: str, changes: Sequence[Change]) -> dict[str, float]:
    """What was counted, by the value of a label."""
    counts: dict[str, float] = {}
    for change in changes:
        for value, rise in change.rises(name, label).items():
            counts[value] = counts.get(value, 0.0) + rise
    return counts


def _rates(name: str, label: str, changes: Sequence[Change], **labels: str) -> dict[str, float]:
    """The rates that are not 0, by the value of a label."""
    rates: dict[str, float] = {}
    for change in changes:
        for value, rise in change.rises(name, label, **labels).items():
            if rise:
                rates[value] = rates.get(value, 0.0) + rise / change.seconds
    return rates


def _share(counts: Mapping[str, float], good: str, *, of_no_account: str = "") -> float | None:
    all_in_all = sum(count for value, count in counts.items() if value != of_no_account)
    return counts.get(good, 0.0) / all_in_all if all_in_all else None


def _cache_hits(changes: Sequence[Change]) -> float | None:
    reads = _counts("famulus_thread_cache_reads_total", "result", changes)
    found, looked_up = reads.get("hit", 0.0), reads.get("hit", 0.0) + reads.get("miss", 0.0)
    # What turns out to be stale was found before, perhaps before the earlier scrape.
    return max(0.0, found - reads.get("stale", 0.0)) / looked_up if looked_up else None


def _highest(name: str, scrapes: Sequence[Scrape]) -> float | None:
    return max((value for scrape in scrapes for _, value in scrape.matching(name)), default=None)


def _breakers(scrapes: Sequence[Scrape]) -> dict[str, str]:
    """How models are that some replicas do not ask: "open on 2 of 3"."""
    levels: dict[str, list[float]] = {}
    for scrape in scrapes:
        for labels, level in scrape.matching("famulus_breaker_open"):
            levels.setdefault(labels.get("model", ""), []).append(level)
    return {
        model: f"{'open' if max(found) == 1 else 'half open'} on {sum(map(bool, found))} of {len(found)}"
        for model, found in sorted(levels.items())
        if any(found)
    }
