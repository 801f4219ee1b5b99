"""The figures as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from famulus_server.cli.monitor.figures import Fleet, Replica
from famulus_server.cli.monitor.replicas import View

if TYPE_CHECKING:
    from rich.console import RenderableType

_NOTHING = "-"
_STATES = {"ready": "green", "draining": "yellow", "not ready": "red"}
_MEGABYTE = 1_000_000
_COLUMNS = ("replica", "role", "state", "slots", "streams", "rpc/s", "ev/s", "err/s", "MB", "CPU%")
_LEFT = 3  # columns with words
_NAME = 15  # of a replica: an IPv4 address, in terminals that are too narrow


def render(view: View) -> RenderableType:
    """The fleet, then each replica."""
    return Group(_fleet(view.fleet), Text(), _replicas(view))


def _fleet(fleet: Fleet) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _lines(fleet):
        table.add_row(name, value)
    return table


def _lines(fleet: Fleet) -> Iterator[tuple[str, Text]]:
    yield "replicas", Text(f"{fleet.reachable} of {fleet.replicas} answer", _red(fleet.reachable < fleet.replicas))
    waiting = _NOTHING if fleet.queue_runs is None else f"{fleet.queue_runs:,.0f}"
    yield "queue", Text(f"{waiting} runs wait, the oldest for {_seconds(fleet.queue_oldest_seconds)}")
    ended = _by(fleet.runs_ended, "/s")
    yield "runs", Text(f"{_rate(fleet.runs_created)} created/s; ended: {ended}; success {_share(fleet.success)}")
    first = f"p50 {_seconds(fleet.first_event_p50)}, p95 {_seconds(fleet.first_event_p95)}"
    yield "first event", Text(first)
    yield "run time", Text(f"p50 {_seconds(fleet.run_seconds_p50)}, p95 {_seconds(fleet.run_seconds_p95)}")
    cost = _NOTHING if fleet.cost_per_hour is None else f"{fleet.cost_per_hour:,.2f} {fleet.currency}".rstrip()
    yield "tokens", Text(f"{_by(fleet.tokens, '/s')}; {cost} an hour")
    breakers = ", ".join(f"{model} {how}" for model, how in fleet.breakers.items())
    yield (
        "models",
        Text(f"{_rate(fleet.retries)} retries/s; breakers: {breakers or 'all closed'}", _red(bool(breakers))),
    )
    yield "limits", Text(f"refused: {_by(fleet.refusals, '/s')}")
    apart = min(fleet.redis_reached_by, fleet.limits_shared_by) < fleet.reachable
    redis = f"reached by {fleet.redis_reached_by} of {fleet.reachable}, limits shared by {fleet.limits_shared_by}"
    yield "redis", Text(f"{redis}; thread cache hits {_share(fleet.cache_hits)}", _red(apart))
    store = f"{_rate(fleet.store_failures)} failures/s; connections: {fleet.store_busy} busy, {fleet.store_idle} idle"
    yield "store", Text(store, _red(bool(fleet.store_failures)))


def _replicas(view: View) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for index, name in enumerate(_COLUMNS):
        table.add_column(
            name, justify="left" if index < _LEFT else "right", no_wrap=True, min_width=_NAME if not index else None
        )
    for replica in view.replicas:
        table.add_row(*_row(replica))
    return table


def _row(replica: Replica) -> list[Text]:
    if replica.problem:
        return [Text(replica.name), Text(_NOTHING), Text(replica.problem, "red")]
    numbers = [
        f"{replica.slots_busy}/{replica.slots}",
        f"{replica.streams:,}",
        _rate(replica.rpcs),
        _rate(replica.events),
        _rate(replica.errors),
        f"{replica.memory_bytes / _MEGABYTE:,.0f}",
        _NOTHING if replica.cpu is None else f"{replica.cpu * 100:.0f}",
    ]
    state = Text(replica.state, _STATES[replica.state])
    return [Text(replica.name), Text(replica.role or _NOTHING), state, *map(Text, numbers)]


def _by(rates: Mapping[str, float], unit: str) -> str:
    return ", ".join(f"{_rate(rate)} {name}{unit}" for name, rate in sorted(rates.items())) or "none"


def _rate(rate: float | None) -> str:
    if rate is None:
        return _NOTHING
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _share(share: float | None) -> str:
    return _NOTHING if share is None else f"{share * 100:.1f} %"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{seconds * 1_000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _red(it_is_bad: bool) -> str:
    return "red" if it_is_bad else ""
