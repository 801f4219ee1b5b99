"""What a worker looks for from time to time, on a real store."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.samples import TENANT, add_run, add_thread, run
from famulus.v1.run_pb2 import RunState
from famulus_server.engine import lifecycle
from famulus_server.engine import worker as worker_module
from famulus_server.engine.clock import SystemClock
from famulus_server.engine.control import Control
from famulus_server.engine.ledger import Settled
from famulus_server.ports import Claimed, Store
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import NoEventLog, NoThreadCache
from unit.engine.worker_stage import LEASE, Executions, end, open_worker, queue


@pytest.fixture
def clock() -> SystemClock:
    # Leases run out by the database's clock, and must be able to.
    return SystemClock()


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
