"""The worker's loops on a real store, with executions that do as they are told."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.samples import OTHER, TENANT, add_run, add_thread, claim_runs, run
from famulus.v1.run_pb2 import RunState
from famulus_server.engine import lifecycle
from famulus_server.engine import worker as worker_module
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.control import Control, Interrupted, Interruption
from famulus_server.engine.feed import Feed
from famulus_server.engine.ledger import Settled
from famulus_server.engine.policy import Policies
from famulus_server.engine.worker import Worker
from famulus_server.ports import Claimed, Lease, Queue, Store
from famulus_server.store.refusals import unavailable
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import NoEventLog, NoHints, NoThreadCache, ledger, run_metrics

LEASE = Lease(owner="me", seconds=0.15)


@pytest.fixture
def clock() -> SystemClock:
    # Leases run out by the database's clock, and must be able to.
    return SystemClock()


class Executions:
    """Stands for the executor: remembers what it was given, and does what the test says."""

    def __init__(self, act: Callable[[Claimed, Control], Awaitable[None]]) -> None:
        self._act = act
        self.given: list[Claimed] = []

    async def execute(self, claimed: Claimed, control: Control) -> None:
        self.given.append(claimed)
        await self._act(claimed, control)


class Working:
    """Stands for the executor, too: works until it is interrupted, and then until the `end`."""

    def __init__(self) -> None:
        self.interrupted: list[tuple[str, Interruption]] = []
        self.end = asyncio.Event()
        self._begun: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._given_up = asyncio.Event()

    async def execute(self, claimed: Claimed, control: Control) -> None:
        self._begun[claimed.run.id].set()
        try:
            with control.interruptible():
                await asyncio.Event().wait()
        except Interrupted as interrupted:
            self.interrupted.append((claimed.run.id, interrupted.why))
            self._given_up.set()
        await self.end.wait()

    async def begun(self, run_id: str) -> None:
        """Returns once it works on this run."""
        await self._begun[run_id].wait()

    async def given_up(self) -> None:
        """Returns once any run was interrupted."""
        await self._given_up.wait()


def open_worker(
    store: Store,
    executions: Any,
    *,
    slots: int = 8,
    event_log: NoEventLog | None = None,
    thread_cache: NoThreadCache | None = None,
    lease: Lease = LEASE,
) -> Worker:
    feed = Feed(event_log=event_log or NoEventLog())
    made = Worker(
        store=store,
        feed=feed,
        ledger=ledger(store, feed),
        thread_cache=thread_cache or NoThreadCache(),
        executor=executions,
        hints=NoHints(),
        lease=lease,
        slots=slots,
        policies=Policies(),
        metrics=run_metrics(),
        clock=SystemClock(),
    )
    made.open()
    return made


async def end(store: Store, claimed: Claimed) -> None:
    ended = await store.read(lambda tx: tx.runs.get(TENANT, claimed.run.id))
    ended.state = RunState.RUN_STATE_COMPLETED
    await store.write(lambda tx: tx.runs.replace(TENANT, ended, attempt=claimed.run.attempt))


async def queue(store: Store, *run_ids: str) -> None:
    for run_id in run_ids:
        await add_thread(store, f"thread_{run_id}")
        await add_run(store, run(run_id, thread_id=f"thread_{run_id}", lives=None))


async def test_run_that_was_given_up_is_taken_up_again_while_others_go_on(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.02)
    done = asyncio.Event()

    async def act(claimed: Claimed, control: Control) -> None:
        # As an execution does that could not reach the store: it ends, and the run is still this worker's.
        if claimed.run.id == "flaky" and claimed.run.attempt == 1:
            return
        if claimed.run.id == "flaky":
            await end(store, claimed)
            done.set()
        # The other run keeps the renewals going.
        await done.wait()

    await queue(store, "steady", "flaky")
    executions = Executions(act)
    made = open_worker(store, executions)
    await asyncio.wait_for(done.wait(), 5.0)
    given = sorted((one.run.id, one.run.attempt) for one in executions.given)
    assert given == [("flaky", 1), ("flaky", 2), ("steady", 1)]
    assert executions.given[-1].taken_over
    await made.close(grace=1.0)


async def test_run_at_work_keeps_its_lease(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.02)
    renewals = 0
    renewed = asyncio.Event()
    plain_write = store.write

    async def counting(unit: Any) -> Any:
        nonlocal renewals
        result = await plain_write(unit)
        renewals += isinstance(result, set)
        if renewals == 10:
            renewed.set()
        return result

    monkeypatch.setattr(store, "write", counting)

    async def act(claimed: Claimed, control: Control) -> None:
        await renewed.wait()
        await end(store, claimed)

    await queue(store, "long")
    executions = Executions(act)
    made = open_worker(store, executions)
    # Ten renewals are more than three leases.
    await asyncio.wait_for(renewed.wait(), 10.0)
    assert len(executions.given) == 1
    await made.close(grace=1.0)


class Renewals:
    """The renewals of a worker on a store: counted once they were done, and refused while that is `away`."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.away = False
        self._write = store.write
        self._changed = asyncio.Condition()
        monkeypatch.setattr(store, "write", self._counting)

    async def come_to(self, count: int) -> None:
        """Returns once so many were done or refused."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.done >= count)

    async def _counting(self, unit: Any) -> Any:
        result = await self._write(unit)
        if not isinstance(result, set):
            return result
        async with self._changed:
            self.done += 1
            self._changed.notify_all()
        if self.away:
            raise unavailable()
        return result


async def test_renewal_that_fails_costs_no_run(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    renewals = Renewals(store, monkeypatch)
    executions = Working()
    await queue(store, "long")
    made = open_worker(store, executions, lease=Lease(owner="me", seconds=1.5))
    async with asyncio.timeout(10.0):
        await executions.begun("long")
        renewals.away = True
        await renewals.come_to(renewals.done + 1)
        renewals.away = False
        await renewals.come_to(renewals.done + 2)
    assert executions.interrupted == []
    executions.end.set()
    await made.close(grace=0.0)


async def test_run_that_begins_behind_an_outage_is_not_given_up_for_it(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.02)
    renewals = Renewals(store, monkeypatch)
    executions = Working()
    await queue(store, "before")
    made = open_worker(store, executions, lease=Lease(owner="me", seconds=0.6))
    async with asyncio.timeout(10.0):
        await executions.begun("before")
        renewals.away = True
        # That does not end it at once: there is something to renew all the time.
        await executions.given_up()
        renewals.away = False
        await queue(store, "behind")
        await executions.begun("behind")
        await renewals.come_to(renewals.done + 2)
    assert executions.interrupted == [("before", Interruption.LEASE_LOST)]
    executions.end.set()
    await made.close(grace=0.0)


async def test_run_whose_lease_somebody_else_has_is_interrupted(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    why: list[Interruption] = []
    interrupted, started = asyncio.Event(), asyncio.Event()

    class Noting(Control):
        def interrupt(self, reason: Interruption) -> None:
            why.append(reason)
            interrupted.set()

    monkeypatch.setattr(worker_module, "Control", Noting)

    async def act(claimed: Claimed, control: Control) -> None:
        started.set()
        await interrupted.wait()

    await queue(store, "lost")
    made = open_worker(store, Executions(act))
    await started.wait()
    taken = await store.read(lambda tx: tx.runs.get(TENANT, "lost"))
    other = Lease(owner="other", seconds=60)
    await store.write(lambda tx: tx.runs.replace(TENANT, taken, attempt=taken.attempt, lease=other))
    await asyncio.wait_for(interrupted.wait(), 5.0)
    assert why == [Interruption.LEASE_LOST]
    await made.close(grace=1.0)


async def test_no_more_runs_are_executed_at_once_than_there_are_slots(store: SqliteStore) -> None:
    go_on = asyncio.Semaphore(0)
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def act(claimed: Claimed, control: Control) -> None:
        begun.put_nowait(claimed.run.id)
        await go_on.acquire()
        await end(store, claimed)

    await queue(store, *(f"r{number}" for number in range(6)))
    made = open_worker(store, Executions(act), slots=2)
    async with asyncio.timeout(5.0):
        seen = [await begun.get() for _ in range(2)]
        for _ in range(4):
            assert len(made._executions) == 2
            assert begun.empty()
            go_on.release()
            seen.append(await begun.get())
        go_on.release()
        go_on.release()
    assert sorted(seen) == [f"r{number}" for number in range(6)]
    await made.close(grace=1.0)


async def test_run_that_comes_in_while_the_queue_is_looked_through_finds_a_slot(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, go_on = asyncio.Event(), asyncio.Event()
    plain_read = store.read

    async def slow(unit: Any) -> Any:
        result = await plain_read(unit)
        if isinstance(result, Queue):
            looking.set()
            await go_on.wait()
        return result

    monkeypatch.setattr(store, "read", slow)
    made = open_worker(store, Executions(lambda *_: asyncio.sleep(0)), slots=2)
    await looking.wait()
    assert made.reserve()
    assert made.reserve()
    assert not made.reserve()
    go_on.set()
    made.release()
    await made.close(grace=1.0)


async def test_slots_that_are_reserved_come_back(store: SqliteStore) -> None:
    made = open_worker(store, Executions(lambda *_: asyncio.sleep(0)), slots=1)
    assert made.reserve()
    assert not made.reserve()
    made.release()
    assert made.reserve()
    made.release()
    await made.close(grace=1.0)
    assert not made.reserve()


async def test_run_that_is_claimed_again_by_its_own_worker_is_executed_once(store: SqliteStore) -> None:
    why: list[Interruption] = []
    second = asyncio.Event()

    class Noting(Control):
        def interrupt(self, reason: Interruption) -> None:
            why.append(reason)

    async def act(claimed: Claimed, control: Control) -> None:
        if claimed.run.attempt == 2:
            second.set()
        await second.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "Control", Noting)
        await queue(store, "frozen")
        [claimed] = await claim_runs(store, LEASE, limit=1)
        made = open_worker(store, Executions(act))
        assert made.reserve()
        made.start(claimed)
        # Its lease runs out, as if the process had been frozen, and its own loop finds it.
        for loop in made._others:
            loop.cancel()
        await asyncio.wait_for(second.wait(), 5.0)
        assert why[0] is Interruption.LEASE_LOST
        await made.close(grace=1.0)


async def test_loop_survives_what_nobody_foresaw(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.02)
    plain_read, faults = store.read, 3

    async def faulty(unit: Any) -> Any:
        nonlocal faults
        if faults:
            faults -= 1
            raise ZeroDivisionError
        return await plain_read(unit)

    monkeypatch.setattr(store, "read", faulty)
    done = asyncio.Event()

    async def act(claimed: Claimed, control: Control) -> None:
        await end(store, claimed)
        done.set()

    await queue(store, "patient")
    made = open_worker(store, Executions(act))
    await asyncio.wait_for(done.wait(), 5.0)
    assert not faults
    await made.close(grace=1.0)


async def test_what_is_left_of_a_deleted_run_is_dropped_even_if_whoever_deleted_it_died(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_DROP_AGAIN", timedelta())
    monkeypatch.setattr(worker_module, "_DROP_SECONDS", 0.02)
    dropped: asyncio.Queue[str] = asyncio.Queue()
    forgotten: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    class Dropping(NoEventLog):
        def drop(self, run_id: str) -> None:
            dropped.put_nowait(run_id)

    class Forgetting(NoThreadCache):
        def forget(self, tenant: str, thread_id: str) -> None:
            forgotten.put_nowait((tenant, thread_id))

    await queue(store, "deleted")
    made = open_worker(
        store,
        Executions(lambda *_: asyncio.sleep(0)),
        slots=0,
        event_log=Dropping(),
        thread_cache=Forgetting(),
    )
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_deleted", SystemClock().now()))
    assert await asyncio.wait_for(dropped.get(), 5.0) == "deleted"
    assert await asyncio.wait_for(forgotten.get(), 5.0) == (TENANT, "thread_deleted")
    await made.close(grace=1.0)


async def test_newcomers_wait_with_those_who_wait_already(store: SqliteStore) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)

    async def act(claimed: Claimed, control: Control) -> None:
        begun.put_nowait(claimed.run.id)
        await go_on.acquire()
        await end(store, claimed)

    await queue(store, "a", "b", "c")
    made = open_worker(store, Executions(act), slots=1)
    async with asyncio.timeout(5.0):
        await begun.get()
        go_on.release()
        # Between the end of one run and the claim of the next the slot is free, but not for everybody.
        while begun.empty():
            assert not made.reserve()
            await asyncio.sleep(0)
        for _ in range(2):
            await begun.get()
            go_on.release()
    await made.close(grace=1.0)


async def test_runs_that_another_worker_took_first_are_made_up_for_at_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 60.0)
    plain_read, other = store.read, Lease(owner="other", seconds=60)
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def raced(unit: Any) -> Any:
        result = await plain_read(unit)
        if isinstance(result, Queue) and len(result.waiting) == 2:
            await store.write(lambda tx: tx.runs.claim(other, {TENANT: 1}))
        return result

    monkeypatch.setattr(store, "read", raced)

    async def act(claimed: Claimed, control: Control) -> None:
        begun.put_nowait(claimed.run.id)

    await queue(store, "taken")
    await add_run(store, run("mine", lives=None), tenant=OTHER)
    made = open_worker(store, Executions(act), slots=1)
    assert await asyncio.wait_for(begun.get(), 5.0) == "mine"
    await made.close(grace=1.0)


async def park(store: Store, run_id: str, at: datetime) -> None:
    [claimed] = await store.write(lambda tx: tx.runs.claim(LEASE, {TENANT: 1}))
    assert claimed.run.id == run_id
    lifecycle.check(claimed.run.state, lifecycle.QUEUED)
    claimed.run.state = lifecycle.QUEUED
    await store.write(lambda tx: tx.runs.replace(TENANT, claimed.run, attempt=1, wake_time=at))


async def test_parked_run_goes_on_when_its_time_has_come(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.02)
    begun: asyncio.Queue[Claimed] = asyncio.Queue()

    async def act(claimed: Claimed, control: Control) -> None:
        begun.put_nowait(claimed)
        await end(store, claimed)

    await queue(store, "parked")
    wake_time = SystemClock().now() + timedelta(seconds=0.2)
    await park(store, "parked", wake_time)
    await queue(store, "other")
    made = open_worker(store, Executions(act), slots=1)
    async with asyncio.timeout(5.0):
        assert (await begun.get()).run.id == "other"
        again = await begun.get()
    assert SystemClock().now() >= wake_time
    assert (again.run.id, again.run.attempt, again.taken_over) == ("parked", 2, False)
    await made.close(grace=1.0)


def told_of_a_settlement(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the store has written one."""
    settled, plain_write = asyncio.Event(), store.write

    async def noting(unit: Any) -> Any:
        result = await plain_write(unit)
        if isinstance(result, Settled):
            settled.set()
        return result

    monkeypatch.setattr(store, "write", noting)
    return settled


async def test_parked_run_expires_in_time(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_SWEEP_SECONDS", 0.02)
    expired = told_of_a_settlement(store, monkeypatch)
    await add_thread(store, "thread_1")
    short = run("short", lives=None)
    short.expire_time.FromDatetime(SystemClock().now() + timedelta(seconds=0.05))
    await add_run(store, short)
    await park(store, "short", SystemClock().now() + timedelta(hours=1))
    made = open_worker(store, Executions(lambda *_: asyncio.sleep(0)))
    await asyncio.wait_for(expired.wait(), 5.0)
    ended = await store.read(lambda tx: tx.runs.get(TENANT, "short"))
    assert ended.state == RunState.RUN_STATE_EXPIRED
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))).active_run_id == ""
    await made.close(grace=1.0)


async def test_run_that_cannot_be_read_keeps_no_other_from_expiring(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SWEEP_SECONDS", 0.02)
    for name, seconds in (("damaged", -2), ("readable", -1)):
        await add_thread(store, f"thread_{name}")
        short = run(name, thread_id=f"thread_{name}", lives=None)
        short.expire_time.FromDatetime(SystemClock().now() + timedelta(seconds=seconds))
        await add_run(store, short)
        await park(store, name, SystemClock().now() + timedelta(hours=1))
    with closing(sqlite3.connect(tmp_path / "famulus.db")) as tool, tool:
        tool.execute("UPDATE runs SET body = x'0001' WHERE id = 'damaged'")
    expired = told_of_a_settlement(store, monkeypatch)
    made = open_worker(store, Executions(lambda *_: asyncio.sleep(0)))
    await asyncio.wait_for(expired.wait(), 5.0)
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_readable"))).active_run_id == ""
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_damaged"))).active_run_id == "damaged"
    await made.close(grace=1.0)


@pytest.mark.parametrize("waiting", [10, 200])
async def test_claim_costs_the_same_however_many_wait(store: SqliteStore, waiting: int) -> None:
    for number in range(waiting):
        await add_run(store, run(f"r{number}", thread_id=f"t{number}", lives=None), tenant=f"tenant{number % 5}")
    made = open_worker(store, Executions(lambda *_: asyncio.sleep(0)), slots=5)
    made._claiming.cancel()  # type: ignore[union-attr]
    for loop in made._others:
        loop.cancel()
    before = store.stats.statements
    assert await made._claim() == 5
    # A look, and a write of one query and five updates in a transaction.
    assert store.stats.statements - before == 1 + (1 + 5 + 2)
    await made.close(grace=0.0)
