"""What one short query answers is read in the event loop; all else is the reader's."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from threading import current_thread, main_thread

import pytest

from contract.samples import TENANT, MovableClock, add_messages, add_run, add_thread, run, thread
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import Transaction
from famulus_server.store.sqlite import SqliteStore

Read = Callable[[Transaction], Awaitable[object]]


async def where(store: SqliteStore, read: Read) -> tuple[list[bool], int]:
    """Whether each attempt at a unit was made in the event loop, and how many statements they took."""
    attempts: list[bool] = []

    async def unit(tx: Transaction) -> None:
        attempts.append(current_thread() is main_thread())
        await read(tx)

    before = store.stats.statements
    await store.read(unit)
    return attempts, store.stats.statements - before


async def test_one_row_is_read_at_once_by_one_statement(store: SqliteStore) -> None:
    await add_thread(store, "thread_1")
    await add_run(store, run())
    assert await where(store, lambda tx: tx.threads.get(TENANT, "thread_1")) == ([True], 1)
    assert await where(store, lambda tx: tx.runs.get(TENANT, "run_1")) == ([True], 1)


async def test_row_that_is_not_there_is_missed_at_once(store: SqliteStore) -> None:
    before = store.stats.statements
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))
    assert store.stats.statements - before == 1


async def test_short_list_is_read_at_once(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *map(str, range(5)))
    for _ in range(20):
        assert await where(store, lambda tx: tx.messages.newest(TENANT, "thread_1", limit=100)) == ([True], 1)


async def test_long_list_is_read_by_the_reader(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *map(str, range(50)))
    for _ in range(20):
        # Once in vain, then between a BEGIN and a COMMIT.
        taken = await where(store, lambda tx: tx.messages.newest(TENANT, "thread_1", limit=100))
        assert taken == ([True, False], 1 + 3)


async def test_list_of_large_rows_is_read_by_the_reader(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *(f"{number}".zfill(12_000) for number in range(3)))
    taken = await where(store, lambda tx: tx.messages.newest(TENANT, "thread_1", limit=100))
    assert taken == ([True, False], 1 + 3)
    assert await where(store, lambda tx: tx.messages.newest(TENANT, "thread_1", limit=1)) == ([True], 1)


async def test_several_queries_are_read_by_the_reader_as_of_one_moment(store: SqliteStore, path: Path) -> None:
    await add_thread(store, "thread_1")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as tool:

        async def unit(tx: Transaction) -> None:
            before = await tx.threads.get(TENANT, "thread_1")
            tool.execute("UPDATE threads SET next_sequence = next_sequence + 1")
            assert await tx.threads.get(TENANT, "thread_1") == before

        # One query in vain, then two between a BEGIN and a COMMIT.
        assert await where(store, unit) == ([True, False], 1 + 4)


async def test_write_is_refused_and_seen_by_the_next_read(store: SqliteStore) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await store.read(lambda tx: tx.threads.insert(TENANT, thread()))
    await add_thread(store, "thread_1")
    await add_messages(store, "thread_1", "a")
    found = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert found.last_message_sequence == 1


async def test_store_that_is_closed_reads_nothing(path: Path) -> None:
    store = SqliteStore(path=path, clock=MovableClock())
    await store.open()
    await add_thread(store, "thread_1")
    await store.close()
    with pytest.raises(Unavailable):
        await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
