"""On PostgreSQL, too, what is read is found by an index, and few round trips are made."""

import json
import re
from collections.abc import AsyncIterator

import asyncpg
import pytest

from contract.samples import START, TENANT, MovableClock, add_run, add_thread, message, run, step, thread
from famulus_server.engine.policy import Policies, Policy, Retention, Tier
from famulus_server.engine.retention import Sweeper
from famulus_server.ports import Account, Transaction
from famulus_server.store import queries
from famulus_server.store.postgres import PostgresStore
from postgres import EVERYBODY
from unit.engine.alone import aftermath

STATEMENTS = queries.load("postgres")
END = 2**63 - 1


@pytest.fixture
async def connection(empty_database: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A look past the store, into its database."""
    opened = await asyncpg.connect(empty_database, server_settings=EVERYBODY)
    yield opened
    await opened.close()


async def test_no_query_reads_a_table_from_end_to_end(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # The planner takes an index then, where there is one that fits.
    await connection.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
    for name, statement in {**STATEMENTS, **queries.locking(STATEMENTS)}.items():
        parameters = len(set(re.findall(r"\$\d+", statement)))
        await connection.execute(f"PREPARE q AS {statement}")
        given = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
        plan = "\n".join(line for (line,) in await connection.fetch(f"EXPLAIN EXECUTE q{given}"))
        await connection.execute("DEALLOCATE q")
        assert not re.search(r"Seq Scan on (?!alembic_version)", plan), f"{name}: {plan}"


async def fill(store: PostgresStore, thread_id: str, count: int) -> None:
    batch = [message(f"{thread_id}-{number}") for number in range(count)]
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(thread_id)))
    await store.write(lambda tx: tx.messages.append(TENANT, thread_id, batch))


async def pages(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, *args: object) -> int:
    """The database's pages of 8 KiB that a query looks at for its five rows."""
    assert len(await connection.fetch(statement, *args)) == 5
    return await touched(connection, statement, *args)


async def touched(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, *args: object) -> int:
    """The database's pages of 8 KiB that a query looks at."""
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *args)
    plan = json.loads(explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("analyzed", [True, False])
async def test_window_of_messages_costs_the_same_in_a_long_thread(
    replica: PostgresStore, connection: "asyncpg.Connection[asyncpg.Record]", analyzed: bool
) -> None:
    await fill(replica, "short", 10)
    await fill(replica, "long", 10_000)
    if analyzed:
        await connection.execute("ANALYZE")
    for name in ("messages_descending", "messages_ascending"):
        after = 0 if name == "messages_descending" else 5
        few = await pages(connection, STATEMENTS[name], TENANT, "short", after, END, 5)
        after = 0 if name == "messages_descending" else 9_995
        many = await pages(connection, STATEMENTS[name], TENANT, "long", after, END, 5)
        # A larger index is deeper by a page or two.
        assert many <= few + 10, name
    few = await pages(connection, STATEMENTS["messages_newest"], TENANT, "short", 5, 9)
    many = await pages(connection, STATEMENTS["messages_newest"], TENANT, "long", 9_995, 9)
    assert many <= few + 10


# Of each tenant some runs have ended, are in line, and are parked.
ADD_QUEUE = """
INSERT INTO runs (tenant, id, thread_id, assistant_id, state, active, create_time, attempt, version, body,
                  queue_time, wake_time, line, start_time)
SELECT 'tenant' || n % 50, n, n, '', CASE WHEN n % 7 = 0 THEN 7 ELSE 1 END, n % 7 > 1, n, 0, 1, ''::bytea,
       n, CASE WHEN n % 7 = 2 THEN 1 ELSE 0 END, CASE WHEN n % 7 = 1 THEN n END, CASE WHEN n % 7 = 0 THEN n END
FROM generate_series($1::int, $2::int) AS n
"""
QUEUE_CALLS: dict[str, tuple[object, ...]] = {
    "runs_queue": ("tenant33", 9, 1_000),
    "runs_first": ('[["tenant33", 1], ["tenant34", 7]]', 7),
    "runs_backlog": ("tenant33", 1_000_000, 10, 0, 10),
}


async def test_look_into_a_long_queue_costs_as_much_as_into_a_short_one(
    replica: PostgresStore, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async def look() -> dict[str, int]:
        return {name: await touched(connection, STATEMENTS[name], *args) for name, args in QUEUE_CALLS.items()}

    await connection.execute(ADD_QUEUE, 1, 7_000)
    await connection.execute("ANALYZE")
    short = await look()
    await connection.execute(ADD_QUEUE, 7_001, 175_000)
    # Neither while the planner believes that there are few, nor once it knows.
    long = [await look()]
    await connection.execute("ANALYZE")
    long.append(await look())
    for name, pages_of_short in short.items():
        for looked in long:
            # An index on more rows is deeper, and its rows are on more pages.
            assert looked[name] <= 2 * pages_of_short + 10, f"{name}: {short} {long}"


ADD_HISTORY = """
INSERT INTO runs (tenant, id, thread_id, assistant_id, state, active, create_time, attempt, version, body)
SELECT 'tenant' || n % 50, n, n, 'a', 7, false, n, 0, 1, ''::bytea FROM generate_series(1, $1::int) AS n
"""
ADD_THREADS = """
INSERT INTO threads (tenant, id, user_id, last_activity, next_sequence, version, body)
SELECT 'tenant' || n % 50, n, '', n, 1, 1, ''::bytea FROM generate_series(1, $1::int) AS n
"""
LISTS: dict[str, tuple[object, ...]] = {
    "threads_page": (0, END, "", 21),
    "runs_page": (END, "", -1, 21),
    "runs_page_of_assistant": (END, "", -1, 21, "a"),
}


async def test_page_costs_the_same_however_much_a_tenant_has(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """A policy that the planner believed to hide most rows would have it sort all of a tenant's."""
    for statement in (ADD_HISTORY, ADD_THREADS):
        await connection.execute(statement, 20_000)
    await connection.execute("ANALYZE; SET famulus.tenant = 'tenant1'")
    for name, args in LISTS.items():
        assert len(await connection.fetch(STATEMENTS[name], "tenant1", *args)) == 21
        # Each row on a page of its own, with an index to it and to its run.
        assert await touched(connection, STATEMENTS[name], "tenant1", *args) < 21 * 5, name


async def test_one_statement_that_reads_makes_one_round_trip(replica: PostgresStore) -> None:
    await add_thread(replica, "thread_1", "a")
    await add_run(replica, run())
    before = replica.stats.statements
    await replica.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert replica.stats.statements - before == 1


async def test_statements_that_read_see_one_moment_in_a_transaction(replica: PostgresStore) -> None:
    await add_thread(replica, "thread_1", "a")

    async def unit(tx: Transaction) -> None:
        await tx.threads.get(TENANT, "thread_1")
        await tx.messages.page(TENANT, "thread_1", limit=10)

    before = replica.stats.statements
    await replica.read(unit)
    # The first one by itself, then both again between a BEGIN and a COMMIT.
    assert replica.stats.statements - before == 5


@pytest.mark.parametrize("count", [1, 100])
async def test_many_messages_are_stored_in_one_round_trip(replica: PostgresStore, count: int) -> None:
    await add_thread(replica, "thread_1")
    batch = [message(f"m{number}") for number in range(count)]
    before = replica.stats
    await replica.write(lambda tx: tx.messages.append(TENANT, "thread_1", batch))
    # BEGIN, the sequences, the messages, COMMIT.
    assert replica.stats.statements - before.statements == 4
    assert replica.stats.commits - before.commits == 1


async def test_threads_that_expire_are_found_below_the_policy_without_a_look_at_others(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await connection.execute(ADD_THREADS, 20_000)
    await connection.execute("UPDATE threads SET create_time = last_activity, keep_after_create = 1_000_000")
    await connection.execute("VACUUM ANALYZE")
    assert await connection.fetch(STATEMENTS["threads_expired"], 500_000, 9) == []
    assert await touched(connection, STATEMENTS["threads_expired"], 500_000, 9) < 10
    assert len(await connection.fetch(STATEMENTS["threads_expired"], 2_000_000, 9)) == 9
    assert await touched(connection, STATEMENTS["threads_expired"], 2_000_000, 9) < 9 * 5


async def test_sweep_without_rules_costs_the_same_for_any_number_of_tenants(replica: PostgresStore) -> None:
    async def unit(tx: Transaction) -> None:
        for number in range(1_000):
            await tx.threads.insert(f"tenant{number}", thread("a"))

    await replica.write(unit)
    tiers = {"default": Tier(), "gold": Tier(retention=Retention(after_create_days=1))}
    clock = MovableClock()
    for tenants, cost in (({}, 5), ({TENANT: "gold"}, 6)):
        policies = Policies(Policy(tiers=tiers, tenants=tenants))
        made = Sweeper(store=replica, aftermath=aftermath(replica), policies=policies, clock=clock, tombstone_days=30)
        before = replica.stats.statements
        await made.sweep()
        # What is over, and old tombstones, these in a transaction that shows all; and a look at the tenant with rules.
        assert replica.stats.statements - before == cost


async def test_fork_costs_the_same_for_any_number_of_messages(replica: PostgresStore) -> None:
    taken = []
    for name, size in (("short", 10), ("long", 1_000)):
        await fill(replica, name, size)
        before = replica.stats.statements
        await replica.write(lambda tx: tx.threads.fork(TENANT, name, size, thread(f"fork of {name}")))  # noqa: B023
        taken.append(replica.stats.statements - before)
    assert taken[0] == taken[1]


async def test_cost_is_added_to_all_accounts_in_one_round_trip(replica: PostgresStore) -> None:
    accounts = [Account("", START), Account("ann", START)]
    before = replica.stats.statements
    await replica.write(lambda tx: tx.usages.spend(TENANT, accounts, 1))
    # Between a BEGIN and a COMMIT.
    assert replica.stats.statements - before == 3


async def test_new_rows_are_stored_by_one_round_trip_unless_they_are_many(replica: PostgresStore) -> None:
    for count, cost in ((0, 1), (4, 1), (100, 2)):
        first = [message(f"{count}-{number}") for number in range(count)]
        made = thread(f"of {count}", metadata={"k": "v"})
        before = replica.stats.statements
        await replica.write(lambda tx: tx.threads.insert(TENANT, made, first))  # noqa: B023
        # Between a BEGIN and a COMMIT.
        assert replica.stats.statements - before == 2 + cost
        assert await replica.read(lambda tx: tx.messages.page(TENANT, made.id, limit=1_000)) == first  # noqa: B023


async def test_row_that_is_stored_twice_by_a_unit_is_as_stored_last(replica: PostgresStore) -> None:
    await add_run(replica, run())
    whole, last = Account("", START), step(step_id="last")

    async def unit(tx: Transaction) -> list[int]:
        for one in (step(step_id="first"), last):
            await tx.steps.put(TENANT, one)
            await tx.usages.spend(TENANT, [whole], 5)
        return await tx.usages.spent(TENANT, [whole])

    assert await replica.write(unit) == [10]
    assert await replica.read(lambda tx: tx.steps.page(TENANT, "run_1")) == [last]


async def test_deleted_thread_leaves_a_tombstone_without_content(
    replica: PostgresStore, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await replica.write(lambda tx: tx.threads.insert(TENANT, thread(user="ann", metadata={"k": "v"})))
    await replica.write(lambda tx: tx.messages.append(TENANT, "thread_1", [message("a")]))
    await add_run(replica, run())
    await replica.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    counts = {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for (name,) in tables}
    assert {name for name, count in counts.items() if count} == {"alembic_version", "threads", "deleted_runs"}
    assert tuple(await connection.fetchrow("SELECT user_id, body FROM threads") or ()) == ("", b"")
