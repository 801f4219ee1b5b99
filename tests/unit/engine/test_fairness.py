"""Whose turn it is, and what a noisy tenant costs the others: counted in starts, on the real worker and store."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from contract.samples import START, MovableClock, add_run, run
from famulus.v1.run_pb2 import RunPriority, RunState
from famulus_server.engine import fairness
from famulus_server.engine import worker as worker_module
from famulus_server.engine.control import Control
from famulus_server.engine.fairness import Turns
from famulus_server.engine.feed import Feed
from famulus_server.engine.policy import Policies, Policy, Tier
from famulus_server.engine.worker import Worker
from famulus_server.ports import Backlog, Claimed, Lease, Store
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import NoEventLog, NoHints, NoThreadCache, ledger, run_metrics


def policies(**weights: int) -> Policies:
    tiers = {tenant: Tier(weight=weight) for tenant, weight in weights.items()}
    return Policies(Policy(tiers={"default": Tier(), **tiers}, tenants={tenant: tenant for tenant in weights}))


def starts(turns: Turns, waiting: Mapping[str, int], *places: int) -> list[str]:
    """Who starts, claim by claim, as the store names those that wait: from the tenant whose turn it is, and round."""
    left, started = dict(waiting), []
    for several in places:
        names = sorted(left)
        circle = [name for name in names if name >= turns.tenant] + [name for name in names if name < turns.tenant]
        shares = turns.share({name: left[name] for name in circle}, several)
        assert all(shares.values())
        for tenant, number in shares.items():
            started += [tenant] * number
            left[tenant] -= number
            if not left[tenant]:
                del left[tenant]
    return started


def test_tenants_take_turns_whether_places_come_singly_or_together() -> None:
    waiting = {"a": 9, "b": 9, "c": 9}
    assert "".join(starts(Turns(policies=policies()), waiting, *[1] * 7)) == "abcabca"
    assert starts(Turns(policies=policies()), waiting, 6) == ["a", "a", "b", "b", "c", "c"]


def test_weights_are_kept_whether_places_come_singly_or_together() -> None:
    waiting = {"a": 90, "b": 90, "c": 90}
    for places in ([1] * 60, [7] * 8 + [4], [60]):
        counted = Counter(starts(Turns(policies=policies(a=3, b=2)), waiting, *places))
        assert counted == {"a": 30, "b": 20, "c": 10}


def test_turn_that_was_broken_off_goes_on() -> None:
    turns = Turns(policies=policies(a=3))
    assert "".join(starts(turns, {"a": 9, "b": 9}, 2, 1, 1, 1)) == "aaaba"


def test_tenant_that_has_nothing_waiting_saves_nothing_up() -> None:
    turns = Turns(policies=policies(a=5))
    assert starts(turns, {"a": 2, "b": 1}, 3) == ["a", "a", "b"]
    # A whole turn, and not what was left of the last one with it.
    assert "".join(starts(turns, {"a": 90, "b": 90}, *[1] * 7)) == "aaaaaba"


def test_more_places_than_runs_are_not_shared_out() -> None:
    turns = Turns(policies=policies(a=2))
    assert turns.share({"a": 1, "b": 4}, 64) == {"a": 1, "b": 4}
    assert turns.share({}, 64) == {}
    assert turns.share({"a": 3}, 0) == {}


def test_weight_that_is_changed_holds_from_the_next_turn_on() -> None:
    exchangeable = policies(a=1)
    turns = Turns(policies=exchangeable)
    assert "".join(starts(turns, {"a": 9, "b": 9}, 2)) == "ab"
    exchangeable.current = policies(a=3).current
    assert "".join(starts(turns, {"a": 9, "b": 9}, *[1] * 4)) == "aaab"


def test_estimate_counts_those_ahead_at_the_pace_of_late() -> None:
    def seconds(**fields: float) -> float:
        backlog = Backlog(**{"queued": 0, "ahead": 0, "starts": 0, "seconds": 60.0} | fields)  # type: ignore[arg-type]
        return (fairness.estimated_start(backlog, START) - START).total_seconds()

    assert seconds(ahead=9, starts=30) == 20.0
    assert seconds(ahead=0, starts=100, seconds=5.0) == 0.05
    # Of a tenant that nothing is known of, it is a minute for each.
    assert seconds(ahead=1) == 120.0


def test_every_priority_has_its_delay() -> None:
    delays = {priority: fairness.delay(priority) for priority in RunPriority.values()}
    assert delays[RunPriority.RUN_PRIORITY_UNSPECIFIED] == delays[RunPriority.RUN_PRIORITY_DEFAULT]
    assert 0 == delays[RunPriority.RUN_PRIORITY_INTERACTIVE] < delays[RunPriority.RUN_PRIORITY_DEFAULT]
    assert delays[RunPriority.RUN_PRIORITY_DEFAULT] < delays[RunPriority.RUN_PRIORITY_BATCH]


@dataclass
class Fleet:
    """A worker with one slot, whose runs end when they are told to: time goes by starts, one a tick."""

    store: Store
    clock: MovableClock
    begun: asyncio.Queue[Claimed] = field(default_factory=asyncio.Queue)
    end: asyncio.Event = field(default_factory=asyncio.Event)
    born: dict[str, int] = field(default_factory=dict)
    waits: dict[str, list[int]] = field(default_factory=dict)
    now: int = 0
    is_busy: bool = False

    def open(self) -> Worker:
        feed = Feed(event_log=NoEventLog())
        worker = Worker(
            store=self.store,
            feed=feed,
            ledger=ledger(self.store, feed),
            thread_cache=NoThreadCache(),
            executor=self,  # type: ignore[arg-type]
            hints=NoHints(),
            lease=Lease(owner="me", seconds=600),
            slots=1,
            policies=policies(),
            metrics=run_metrics(),
            clock=self.clock,
        )
        worker.open()
        return worker

    async def execute(self, claimed: Claimed, control: Control) -> None:
        self.begun.put_nowait(claimed)
        await self.end.wait()
        self.end.clear()
        ended = await self.store.read(lambda tx: tx.runs.get(claimed.tenant, claimed.run.id))
        ended.state = RunState.RUN_STATE_COMPLETED
        await self.store.write(lambda tx: tx.runs.replace(claimed.tenant, ended, attempt=claimed.run.attempt))

    async def add(self, tenant: str, number: int) -> None:
        for _ in range(number):
            created = int((self.clock.now() - START).total_seconds())
            name = f"{tenant} {created} {len(self.born)}"
            self.born[name] = self.now
            await add_run(self.store, run(name, thread_id=name, seconds=created, lives=None), tenant=tenant)

    async def tick(self, worker: Worker) -> None:
        """The run at work ends, and another one begins if any waits."""
        worker.wake()
        if self.is_busy:
            self.end.set()
        self.is_busy = sum(map(len, self.waits.values())) < len(self.born)
        if self.is_busy:
            claimed = await asyncio.wait_for(self.begun.get(), 10.0)
            self.waits.setdefault(claimed.tenant, []).append(self.now - self.born[claimed.run.id])
        self.now += 1
        self.clock.advance(1)


QUIET = ("ann", "bob", "zoe", "zac")


async def waits_of_the_quiet(store: Store, clock: MovableClock, *, noise: int) -> list[int]:
    """How many ticks the runs of four tenants wait, each of which wants four fifths of what a fifth tenant leaves it.
    The fifth one, between them by its name, adds so many runs a tick."""
    fleet = Fleet(store, clock)
    worker = fleet.open()
    for tick in range(100):
        await fleet.add("noisy", noise)
        if tick % 25 == 0:
            for tenant in QUIET:
                await fleet.add(tenant, 4)
        await fleet.tick(worker)
    fleet.end.set()
    await worker.close(grace=0.0)
    waits = [wait for tenant in QUIET for wait in fleet.waits.get(tenant, ())]
    assert len(waits) == 64
    assert fleet.now - len(fleet.waits.get("noisy", ())) >= 64
    return sorted(waits)


async def test_tenant_at_ten_times_its_share_at_most_doubles_how_long_the_others_wait(
    store: SqliteStore, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 1_000.0)
    alone = await waits_of_the_quiet(store, clock, noise=0)
    # A fifth of one start a tick is its share.
    disturbed = await waits_of_the_quiet(store, clock, noise=2)
    # The 99th percentile of 64 is the last.
    assert alone[-1] > 0
    assert disturbed[-1] <= 2 * alone[-1], (alone, disturbed)
