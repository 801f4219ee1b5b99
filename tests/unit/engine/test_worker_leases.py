"""How a worker keeps its runs, and loses them, on a real store."""

import asyncio
from typing import Any

import pytest

from contract.samples import TENANT
from famulus_server.engine import worker as worker_module
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.control import Control, Interruption
from famulus_server.ports import Claimed, Lease, Store
from famulus_server.store.refusals import unavailable
from famulus_server.store.sqlite import SqliteStore
from unit.engine.worker_stage import Executions, Working, end, open_worker, queue


@pytest.fixture
def clock() -> SystemClock:
    # Leases run out by the database's clock, and must be able to.
    return SystemClock()


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
