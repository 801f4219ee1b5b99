"""A deletion of a user's data ends as it should, wherever it is cut off."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from contract.samples import TENANT, MovableClock, add_messages, message, read_texts, run, thread
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.user_data_service_pb2 import DeletionReceipt, DeletionState
from famulus_server.engine.clock import TimeOrderedIds
from famulus_server.engine.user_data import UserDataDesk, Wipe
from famulus_server.ports import Store, Transaction
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import NoEventLog, NoThreadCache, aftermath

T = TypeVar("T")

USER = "ann-Xq7marker"
THREADS = 25
LATER = 11.0
# Where the process may die: before or after the commit of each of its writes; 1 begins the deletion, 6 ends it.
CUTS = [(1, True), *((number, committed) for number in range(2, 7) for committed in (False, True))]


class Died(Exception):
    """The process came no further."""


class MortalStore:
    """A store whose process dies at its write of some number."""

    def __init__(self, store: Store, *, dies_at: int = 0, committed: bool = False) -> None:
        self._store = store
        self._dies_at = dies_at
        self._committed = committed
        self.writes = 0

    async def read(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._store.read(unit)

    async def write(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        self.writes += 1
        if self.writes != self._dies_at:
            return await self._store.write(unit)
        if self._committed:
            await self._store.write(unit)
        raise Died


class Drops(NoEventLog):
    """Remembers which runs' events were dropped."""

    def __init__(self) -> None:
        self.run_ids: set[str] = set()

    def drop(self, run_id: str) -> None:
        self.run_ids.add(run_id)


class Forgotten(NoThreadCache):
    """Remembers which threads were forgotten."""

    def __init__(self) -> None:
        self.thread_ids: set[str] = set()

    def forget(self, tenant: str, thread_id: str) -> None:
        self.thread_ids.add(thread_id)


class Process:
    """What one process has around the store that it shares with others."""

    def __init__(self, store: Store, clock: MovableClock, *wipes: Wipe) -> None:
        self.drops, self.forgotten = Drops(), Forgotten()
        self.desk = UserDataDesk(
            store=store,
            aftermath=aftermath(store, event_log=self.drops, thread_cache=self.forgotten),
            wipes=wipes,
            clock=clock,
            ids=TimeOrderedIds(clock=clock),
        )


def active_run(run_id: str, thread_id: str) -> Run:
    made = run(run_id, thread_id=thread_id, state=RunState.RUN_STATE_IN_PROGRESS, attempt=1)
    made.user_id = USER
    return made


async def fill(store: Store) -> None:
    """Threads of one user, one of them shared with somebody else and with an active run."""
    for number in range(THREADS):
        thread_id = f"thread_{number:02}"
        await store.write(lambda tx, name=thread_id: tx.threads.insert(TENANT, thread(name, user=USER)))  # type: ignore[misc]
        await add_messages(store, thread_id, f"a{number}", f"b{number}")

    async def unit(tx: Transaction) -> None:
        working = active_run("run_1", "thread_03")
        await tx.runs.insert(TENANT, working, lease=None)
        await tx.usages.put(TENANT, working)
        await tx.threads.fork(TENANT, "thread_03", 2, thread("thread_bob", user="bob"))
        await tx.messages.append(TENANT, "thread_bob", [message("bobs")])

    await store.write(unit)


async def under_way(store: Store, clock: MovableClock) -> list[tuple[str, str]]:
    clock.advance(LATER)
    return await store.read(lambda tx: tx.deletions.under_way(clock.now(), limit=9))


async def receipt_of(store: Store, path: Path) -> DeletionReceipt:
    with closing(sqlite3.connect(path)) as connection:
        [(receipt_id,)] = connection.execute("SELECT id FROM deletions").fetchall()
    return (await store.read(lambda tx: tx.deletions.get(TENANT, receipt_id))).receipt


@pytest.mark.parametrize(("dies_at", "committed"), CUTS)
async def test_another_process_ends_what_one_left_at_any_write(
    store: SqliteStore, clock: MovableClock, tmp_path: Path, dies_at: int, committed: bool
) -> None:
    await fill(store)
    first = Process(MortalStore(store, dies_at=dies_at, committed=committed), clock)
    with pytest.raises(Died):
        await first.desk.delete(TENANT, USER, None)
    clock.advance(LATER)
    second = Process(store, clock, store.wipe)
    await second.desk.resume()

    receipt = await receipt_of(store, tmp_path / "famulus.db")
    assert receipt.state == DeletionState.DELETION_STATE_COMPLETED
    counts = receipt.counts
    assert (counts.threads, counts.messages, counts.runs, counts.usage_records) == (THREADS, 2 * THREADS, 1, 1)
    assert await under_way(store, clock) == []
    assert await read_texts(store, "thread_bob") == ["bobs"]
    if (dies_at, committed) != CUTS[-1]:
        # Whatever the first one still did: the second one does it, too.
        assert "run_1" in second.drops.run_ids
        assert {"thread_03", "thread_bob"} <= second.forgotten.thread_ids
        assert USER.encode() not in (tmp_path / "famulus.db").read_bytes()
        assert USER.encode() not in (tmp_path / "famulus.db-wal").read_bytes()


async def test_deletion_takes_as_many_writes_as_the_cuts_go_through(store: SqliteStore, clock: MovableClock) -> None:
    await fill(store)
    counted = MortalStore(store)
    await Process(counted, clock).desk.delete(TENANT, USER, None)
    assert counted.writes == CUTS[-1][0]


async def test_processes_at_once_count_everything_once(store: SqliteStore, clock: MovableClock) -> None:
    await fill(store)
    with pytest.raises(Died):
        await Process(MortalStore(store, dies_at=2), clock).desk.delete(TENANT, USER, None)
    clock.advance(LATER)
    desks = [Process(store, clock).desk for _ in range(4)]
    *_, receipt = await asyncio.gather(*(desk.resume() for desk in desks[1:]), desks[0].delete(TENANT, USER, None))
    assert isinstance(receipt, DeletionReceipt)
    assert (receipt.counts.threads, receipt.counts.messages) == (THREADS, 2 * THREADS)


async def test_call_joins_the_deletion_that_is_under_way(
    store: SqliteStore, clock: MovableClock, tmp_path: Path
) -> None:
    await fill(store)
    with pytest.raises(Died):
        await Process(MortalStore(store, dies_at=3), clock).desk.delete(TENANT, USER, None)
    receipt = await Process(store, clock).desk.delete(TENANT, USER, None)
    assert receipt == await receipt_of(store, tmp_path / "famulus.db")
    assert receipt.counts.threads == THREADS


async def test_deletion_that_a_call_still_waits_for_is_left_to_it(store: SqliteStore, clock: MovableClock) -> None:
    await fill(store)
    with pytest.raises(Died):
        await Process(MortalStore(store, dies_at=3), clock).desk.delete(TENANT, USER, None)
    other = Process(store, clock)
    await other.desk.resume()
    assert other.desk.completed == 0
    clock.advance(LATER)
    await other.desk.resume()
    assert other.desk.completed == 1


# In the middle of the threads, and when the threads are gone but the user's name is still in records.
@pytest.mark.parametrize("cut", [2, 5])
async def test_threads_made_before_the_last_call_go_and_later_ones_stay(
    store: SqliteStore, clock: MovableClock, tmp_path: Path, cut: int
) -> None:
    async def add(thread_id: str) -> None:
        clock.advance(1.0)
        late = thread(thread_id, user=USER)
        late.create_time.FromDatetime(clock.now())
        await store.write(lambda tx: tx.threads.insert(TENANT, late))

    await fill(store)
    with pytest.raises(Died):
        await Process(MortalStore(store, dies_at=cut), clock).desk.delete(TENANT, USER, None)
    await add("thread_before_the_second_call")
    clock.advance(1.0)
    # This one only joins.
    with pytest.raises(Died):
        await Process(MortalStore(store, dies_at=2), clock).desk.delete(TENANT, USER, None)
    await add("thread_late")
    clock.advance(LATER)
    await Process(store, clock).desk.resume()
    receipt = await receipt_of(store, tmp_path / "famulus.db")
    assert receipt.state == DeletionState.DELETION_STATE_COMPLETED
    assert receipt.counts.threads == THREADS + 1
    left = await store.read(lambda tx: tx.threads.of_user(TENANT, USER, limit=9))
    assert left == [("thread_late", False)]


async def test_wipes_come_before_the_end_and_need_not_succeed(store: SqliteStore, clock: MovableClock) -> None:
    seen: list[DeletionState.ValueType] = []

    async def fails() -> None:
        raise OSError("gone")

    async def looks() -> None:
        [(tenant, receipt_id)] = await under_way(store, clock)
        deletion = await store.read(lambda tx: tx.deletions.get(tenant, receipt_id))
        assert deletion.user_id == ""
        seen.append(deletion.receipt.state)

    await fill(store)
    receipt = await Process(store, clock, fails, looks).desk.delete(TENANT, USER, None)
    assert seen == [DeletionState.DELETION_STATE_DELETING]
    assert receipt.state == DeletionState.DELETION_STATE_COMPLETED


async def test_other_deletions_go_on_where_one_fails(store: SqliteStore, clock: MovableClock) -> None:
    await fill(store)
    for user_id in (USER, "bob"):
        with pytest.raises(Died):
            await Process(MortalStore(store, dies_at=2), clock).desk.delete(TENANT, user_id, None)
    clock.advance(LATER)
    # The first write of the first one.
    failing = Process(MortalStore(store, dies_at=1), clock)
    await failing.desk.resume()
    assert failing.desk.completed == 1
    await failing.desk.resume()
    assert failing.desk.completed == 2
