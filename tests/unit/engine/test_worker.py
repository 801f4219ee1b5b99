"""How a worker finds and begins its runs, on a real store."""

import asyncio
import gc
import weakref
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from contract.samples import OTHER, TENANT, add_run, claim_runs, run
from famulus_server.engine import worker as worker_module
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.control import Control, Interruption
from famulus_server.ports import Claimed, Lease, Queue
from famulus_server.store.sqlite import SqliteStore
from unit.engine.worker_stage import LEASE, Executions, Working, end, open_worker, queue


@pytest.fixture
def clock() -> SystemClock:
    # Leases run out by the database's clock, and must be able to.
    return SystemClock()


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


async def test_run_at_work_keeps_nothing_of_the_call_that_started_it(store: SqliteStore) -> None:
    executions = Working()
    made = open_worker(store, executions)

    def call() -> weakref.ref[_Call]:
        called = _Call()
        ContextVar[_Call]("call").set(called)
        assert made.reserve()
        made.start(Claimed(TENANT, run("at_work"), taken_over=False))
        return weakref.ref(called)

    kept = copy_context().run(call)
    await executions.begun("at_work")
    gc.collect()
    assert kept() is None
    executions.end.set()
    await made.close(grace=0.0)


class _Call:
    """What a server knows of a call."""
