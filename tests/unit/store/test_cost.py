"""What reads and forks cost must not grow with what is stored; what is deleted leaves no content."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from contract.samples import (
    OTHER,
    START,
    TENANT,
    add_messages,
    add_run,
    add_thread,
    message,
    run,
    step,
    thread,
)
from famulus.v1.run_pb2 import RunState
from famulus_server.ports import Transaction, Turn
from famulus_server.store import queries
from famulus_server.store.sqlite import SqliteStore

# The queue, the arguments given as JSON, what was found by an index before and the list of an operator's single row are
# small; all else is found by an index.
SCANNED = {
    *("abandoned", "parked", "turns", "turn", "counted", "r"),
    *("waiting", "held", "ahead", "started"),
    *("found", "seen", "outlived", "completed", "wanted", "named", "json_each", "alembic_version"),
}


@pytest.fixture
def statements() -> dict[str, str]:
    return dict(queries.load("sqlite"))


@pytest.fixture
def connection(store: SqliteStore, path: Path) -> Iterator[sqlite3.Connection]:
    """A look past the store, into its file."""
    with closing(sqlite3.connect(path)) as opened:
        yield opened


async def fill(store: SqliteStore, thread_id: str, count: int) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(thread_id)))
    batch = [message(f"{thread_id}-{number}") for number in range(count)]
    await store.write(lambda tx: tx.messages.append(TENANT, thread_id, batch))


def steps(connection: sqlite3.Connection, statement: str, *args: object) -> tuple[int, int]:
    """Steps of SQLite's machine that a query takes, and the number of its rows."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    bound = {str(number): value for number, value in enumerate(args, 1)}
    # The first use also reads the schema.
    rows = connection.execute(statement, bound).fetchall()
    connection.set_progress_handler(count, 1)
    connection.execute(statement, bound).fetchall()
    connection.set_progress_handler(None, 0)
    return taken, len(rows)


def test_no_query_reads_a_table_from_end_to_end(connection: sqlite3.Connection, statements: dict[str, str]) -> None:
    for name, statement in statements.items():
        args: dict[str, object] = {str(number): 1 for number in range(1, 19)}
        args["1"] = args["3"] = args["7"] = "[]"  # some queries read JSON from these
        for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {statement}", args):
            if detail.startswith("SCAN ") and detail != "SCAN CONSTANT ROW":
                _, table, *rest = detail.split()
                assert table in SCANNED, f"{name}: {detail}"
                assert table != "r" or rest == ["USING", "INDEX", "runs_waiting"], f"{name}: {detail}"


@pytest.mark.parametrize("size", [1_000, 10_000])
async def test_window_of_messages_costs_the_same_in_a_long_thread(
    store: SqliteStore, connection: sqlite3.Connection, statements: dict[str, str], size: int
) -> None:
    await fill(store, "short", 10)
    await fill(store, "long", size)
    end = 2**63 - 1
    newest = statements["messages_descending"]
    few = steps(connection, newest, TENANT, "short", 0, end, 5)
    assert few[1] == 5
    assert steps(connection, newest, TENANT, "long", 0, end, 5) == few
    oldest = statements["messages_ascending"]
    few = steps(connection, oldest, TENANT, "short", 5, end, 5)
    assert few[1] == 5
    assert steps(connection, oldest, TENANT, "long", size - 5, end, 5) == few
    few = steps(connection, statements["messages_newest"], TENANT, "short", 5, 9)
    many = steps(connection, statements["messages_newest"], TENANT, "long", size - 5, 9)
    assert few[1] == many[1] == 5
    # Longer numbers are sorted by a step more or less.
    assert abs(many[0] - few[0]) <= 2


async def test_fork_costs_the_same_for_any_number_of_messages_and_copies_none(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    taken = []
    for name, size in (("short", 10), ("long", 10_000)):
        await fill(store, name, size)
        before = store.stats.statements
        await store.write(lambda tx: tx.threads.fork(TENANT, name, size, thread(f"fork of {name}")))  # noqa: B023
        taken.append(store.stats.statements - before)
    assert taken[0] == taken[1]
    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (10_010,)


async def test_spending_costs_the_same_however_many_runs_there_were(
    store: SqliteStore, connection: sqlite3.Connection, statements: dict[str, str]
) -> None:
    add, month = statements["spending_add"], 0

    async def use(runs: int) -> None:
        async def unit(tx: Transaction) -> None:
            for number in range(runs):
                await tx.usages.put(TENANT, run(f"of many {number}"))

        await store.write(unit)

    await use(1)
    few = [steps(connection, add, TENANT, user, month, 1) for user in ("", "ann")]
    connection.commit()
    await use(1_000)
    assert [steps(connection, add, TENANT, user, month, 1) for user in ("", "ann")] == few
    # Where a period begins, the runs of one user are found without those of the others.
    args = {str(number): "" for number in range(1, 5)}
    plan = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {add}", args)]
    assert "SEARCH u USING INDEX run_usage_of_user (tenant=? AND user_id=? AND create_time>?)" in plan


async def test_thread_is_read_by_one_statement(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", "a")
    await add_run(store, run())
    before = store.stats.statements
    await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert store.stats.statements - before == 1


def contents(connection: sqlite3.Connection) -> dict[str, int]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    return {name: count for name, count in counts.items() if count and name != "alembic_version"}


async def test_buried_thread_leaves_a_tombstone_without_content(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(user="ann", metadata={"k": "v"})))
    await add_messages(store, "thread_1", "a", "b")
    await add_run(store, run(state=RunState.RUN_STATE_IN_PROGRESS, attempt=1))
    await store.write(lambda tx: tx.steps.put(TENANT, step()))
    await store.write(lambda tx: tx.turns.put(TENANT, "run_1", Turn(number=1, seen_sequence=2, items=[])))
    await add_thread(store, "thread_1", "a", tenant=OTHER)
    before = contents(connection)
    assert before["messages"] == 3
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    tombstone = connection.execute(
        "SELECT id, user_id, body, deleted_time FROM threads WHERE tenant = ?", (TENANT,)
    ).fetchall()
    assert tombstone == [("thread_1", "", b"", int(START.timestamp()) * 1_000_000)]
    # The id of the run stays until its events outside the store have been dropped.
    assert contents(connection) == {"threads": 2, "thread_segments": 1, "messages": 1, "deleted_runs": 1}


async def test_messages_go_with_the_last_thread_that_refers_to_them(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    def kept() -> list[str]:
        return [name for (name,) in connection.execute("SELECT id FROM messages ORDER BY id")]

    await add_thread(store, "one", "a", "b", "c")
    await store.write(lambda tx: tx.threads.fork(TENANT, "one", 2, thread("two")))
    await add_messages(store, "two", "d")
    await store.write(lambda tx: tx.threads.fork(TENANT, "two", 1, thread("three")))
    await store.write(lambda tx: tx.threads.bury(TENANT, "one", START))
    assert kept() == ["a", "b", "d"]
    await store.write(lambda tx: tx.threads.bury(TENANT, "two", START))
    assert kept() == ["a"]
    await store.write(lambda tx: tx.threads.bury(TENANT, "three", START))
    assert contents(connection) == {"threads": 3}


async def test_message_that_nobody_sees_any_more_is_not_kept(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    def kept() -> int:
        return int(connection.execute("SELECT count(*) FROM messages").fetchone()[0])

    await add_thread(store, "one", "a", "b", "c")
    await store.write(lambda tx: tx.threads.fork(TENANT, "one", 3, thread("two")))
    await store.write(lambda tx: tx.messages.delete(TENANT, "one", "a"))
    await store.write(lambda tx: tx.messages.delete(TENANT, "one", "b"))
    assert kept() == 3
    await store.write(lambda tx: tx.messages.delete(TENANT, "two", "a"))
    assert kept() == 2
    await store.write(lambda tx: tx.threads.bury(TENANT, "two", START))
    assert kept() == 1
