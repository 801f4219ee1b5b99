"""PostgreSQL keeps tenants apart by itself, whatever the text of a query: row-level security on every table."""

import logging
import random
from collections.abc import AsyncIterator, Mapping
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import Connection as MigrationConnection
from sqlalchemy import text

from contract.samples import ODD_IDS, OTHER, TENANT, add_run, add_thread, run, thread
from famulus_server.errors import NotFound
from famulus_server.ports import RunFilter, Transaction
from famulus_server.store import postgres_schema, queries, schema
from famulus_server.store.postgres import PostgresStore
from postgres import PostgresServer, create_database, drop_database, execute, query

pytestmark = pytest.mark.asyncio(loop_scope="module")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

WITH_TENANT = """
SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, a.attnum = i.indkey[0]
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
"""
COLUMNS = """
SELECT column_name, data_type FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = $1 AND column_name <> 'tenant'
  AND is_generated = 'NEVER'
"""
# The audit log is one chain, so its rows are numbered for all tenants together.
OF_ALL = "audit_log"
# A value of each type that the schema has, different for two tenants in keys; a new type needs one here.
VALUES: Mapping[str, str] = {
    "text": "'{tenant}'",
    "bigint": "length('{tenant}')",
    "integer": "1",
    "bytea": "''::bytea",
    "boolean": "false",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tables(postgres_url: str) -> AsyncIterator[tuple[Connection, list[str]]]:
    """The tables that have tenants, with a row of each of two in each, seen by the role that owns them."""
    url = create_database(postgres_url)
    await postgres_schema.upgrade_database(url)
    connection = await asyncpg.connect(url)
    # Its triggers would refuse what the policies are asked about.
    await connection.execute(f"ALTER TABLE {OF_ALL} DISABLE TRIGGER USER")
    names = [row["relname"] for row in await connection.fetch(WITH_TENANT)]
    for name in names:
        for tenant in (TENANT, OTHER):
            await show(connection, tenant)
            await connection.execute(await insertion(connection, name, tenant))
    yield connection, names
    await connection.close()
    drop_database(postgres_url, url)


async def show(connection: Connection, tenant: str) -> None:
    await connection.execute("SELECT set_config('famulus.tenant', $1, false)", tenant)


async def insertion(connection: Connection, table: str, tenant: str) -> str:
    """A statement that adds a row of the tenant."""
    columns = await connection.fetch(COLUMNS, table)
    named = ", ".join(["tenant", *(row["column_name"] for row in columns)])
    values = ", ".join([f"'{tenant}'", *(VALUES[row["data_type"]].format(tenant=tenant) for row in columns)])
    return f"INSERT INTO {table} ({named}) VALUES ({values})"


async def changed(connection: Connection, statement: str) -> int:
    """How many rows a statement changes, which is undone again."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        return int((await connection.execute(statement)).rpartition(" ")[2])
    finally:
        await transaction.rollback()


async def check_apart(connection: Connection, table: str) -> None:
    """Queries without any condition see and change the rows of the tenant that is shown, and add no others."""
    for tenant in (TENANT, OTHER):
        await show(connection, tenant)
        assert [row["tenant"] for row in await connection.fetch(f"SELECT tenant FROM {table}")] == [tenant]
        assert await changed(connection, f"UPDATE {table} SET tenant = tenant") == 1
        assert await changed(connection, f"DELETE FROM {table}") == 1
    for refused in (await insertion(connection, table, TENANT), f"UPDATE {table} SET tenant = '{TENANT}'"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await changed(connection, refused)


async def test_every_table_with_tenants_is_behind_row_level_security(tables: tuple[Connection, list[str]]) -> None:
    connection, names = tables
    assert {"threads", "messages", "runs", "run_usage", "request_ids"} <= set(names)
    for name, enabled, forced, first_in_key in await connection.fetch(WITH_TENANT):
        assert (enabled, forced, first_in_key) == (True, True, name != OF_ALL), name


async def test_query_without_any_condition_is_kept_to_its_tenant(tables: tuple[Connection, list[str]]) -> None:
    connection, names = tables
    for name in names:
        await check_apart(connection, name)


async def test_where_no_tenant_is_shown_there_are_no_rows(tables: tuple[Connection, list[str]]) -> None:
    connection, names = tables
    await show(connection, "")
    for name in names:
        assert await connection.fetchval(f"SELECT count(*) FROM {name}") == 0
        for statement in (f"UPDATE {name} SET tenant = tenant", f"DELETE FROM {name}"):
            assert await changed(connection, statement) == 0
        for tenant in (TENANT, "", "*"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await changed(connection, await insertion(connection, name, tenant))


async def test_connection_that_never_showed_a_tenant_sees_no_rows(migrated_database: str) -> None:
    execute(migrated_database, "INSERT INTO spending VALUES ('new', '', 0, 1)")
    connection = await asyncpg.connect(migrated_database)
    assert await connection.fetchval("SELECT count(*) FROM spending") == 0
    await connection.close()
    assert await query(migrated_database, "SELECT count(*) FROM spending WHERE tenant = 'new'") == 1


@pytest.mark.parametrize("damage", ["DROP POLICY tenants ON {}", "ALTER TABLE {} NO FORCE ROW LEVEL SECURITY"])
async def test_check_notices_a_table_without_its_policy(tables: tuple[Connection, list[str]], damage: str) -> None:
    connection, names = tables
    for name in names:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(damage.format(name))
        with pytest.raises(AssertionError):
            await check_apart(connection, name)
        await transaction.rollback()


async def test_query_that_forgot_its_tenant_still_sees_no_other(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = dict(queries.load("postgres"))
    assert "tenant = $1 AND" in written["runs_page"]
    written["runs_page"] = written["runs_page"].replace("tenant = $1 AND", "$1::text <> '' AND")
    monkeypatch.setattr(queries, "load", lambda _: written)
    store = PostgresStore(url=empty_database)
    await store.open()
    await add_run(store, run("run_1"))
    await add_run(store, run("run_2"), tenant=OTHER)
    for tenant, its in ((TENANT, "run_1"), (OTHER, "run_2")):
        found = await store.read(lambda tx: tx.runs.page(tenant, RunFilter(), after=None, limit=9))  # noqa: B023
        assert [one.id for one in found] == [its]
    await store.close()


NAMES = [*(odd for odd in ODD_IDS if odd not in ("", "*")), "o'hara", "back\\slash", "\\' or true --", "a;b\n", "E'"]


async def test_tenants_may_be_called_anything(empty_database: str) -> None:
    store = PostgresStore(url=empty_database, pool=1)
    await store.open()
    for name in NAMES:
        await add_thread(store, f"of {name}", tenant=name)
    for name in NAMES:
        assert (await store.read(lambda tx: tx.threads.get(name, f"of {name}"))).id == f"of {name}"  # noqa: B023
    for nobody in ("", "*"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await add_thread(store, "of nobody", tenant=nobody)
        with pytest.raises(NotFound):
            await store.read(lambda tx: tx.threads.get(nobody, f"of {NAMES[0]}"))  # noqa: B023
    await store.close()


class Undone(Exception):
    """Undoes a unit."""


async def test_each_statement_sees_its_tenant_whatever_went_before_on_its_connection(empty_database: str) -> None:
    """Reads by one statement and by several, writes that are stored and undone, of one tenant, several and all."""
    store = PostgresStore(url=empty_database, pool=1)
    await store.open()
    tenants = ("a", "b", "c")
    for name in tenants:
        await add_thread(store, f"thread_{name}", tenant=name)
        await add_run(store, run(f"run_{name}", thread_id=f"thread_{name}"), tenant=name)

    async def see(tx: Transaction, *names: str) -> None:
        for name in names:
            assert (await tx.threads.get(name, f"thread_{name}")).active_run_id == f"run_{name}"

    async def write(tx: Transaction, *names: str, undone: bool = False) -> None:
        await see(tx, *names)
        await tx.threads.replace(names[-1], thread(f"thread_{names[-1]}"))
        if undone:
            raise Undone

    async def look_at_all(tx: Transaction) -> None:
        found = await tx.runs.versions([(name, f"run_{name}") for name in tenants])
        assert len(found) == len(tenants)

    chance = random.Random(10)
    for _ in range(300):
        names = chance.sample(tenants, chance.randint(1, 3))
        match chance.randrange(5):
            case 0:
                await store.read(lambda tx: see(tx, names[0]))  # noqa: B023
            case 1:
                await store.read(lambda tx: see(tx, *names))  # noqa: B023
            case 2:
                await store.write(lambda tx: write(tx, *names))  # noqa: B023
            case 3:
                with pytest.raises(Undone):
                    await store.write(lambda tx: write(tx, *names, undone=True))  # noqa: B023
            case 4:
                await store.read(look_at_all)
    await store.close()


async def test_lone_read_costs_one_round_trip_more_only_where_the_tenant_changes(empty_database: str) -> None:
    store = PostgresStore(url=empty_database, pool=1)
    await store.open()
    for name in (TENANT, OTHER):
        await add_thread(store, f"of {name}", tenant=name)
    costs = []
    for name in (OTHER, OTHER, TENANT, TENANT, OTHER):
        before = store.stats.statements
        await store.read(lambda tx: tx.threads.get(name, f"of {name}"))  # noqa: B023
        costs.append(store.stats.statements - before)
    # The thread of OTHER was written last.
    assert costs == [1, 1, 2, 1, 2]
    await store.close()


async def test_statements_of_a_unit_show_their_tenant_with_its_begin(empty_database: str) -> None:
    store = PostgresStore(url=empty_database, pool=1)
    await store.open()
    costs = []
    for name in (TENANT, OTHER):
        await add_thread(store, "thread_1", tenant=name)
        before = store.stats.statements
        await store.write(lambda tx: tx.threads.touch(name, "thread_1", store.clock.now()))  # noqa: B023
        costs.append(store.stats.statements - before)
    assert costs == [3, 3]

    async def nothing(_: Transaction) -> None:
        """No statement, no transaction."""

    before = store.stats.statements
    await store.write(nothing)
    assert store.stats.statements == before
    await store.close()


@pytest.mark.parametrize(("role", "warned"), [("SUPERUSER", True), ("BYPASSRLS", True), ("NOSUPERUSER", False)])
async def test_role_that_no_policy_binds_is_warned_of(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture, role: str, warned: bool
) -> None:
    name = f"role_{role.lower()}"
    execute(postgres_server.url(user="postgres"), f"CREATE ROLE {name} LOGIN CREATEDB {role}")
    store = PostgresStore(url=create_database(postgres_server.url(user=name)))
    with caplog.at_level(logging.WARNING, logger="famulus_server"):
        await store.open()
    await store.close()
    said = [record.getMessage() for record in caplog.records]
    assert [f"{name!r}" in one and "ordinary role" in one for one in said] == [True] * warned


async def test_migration_sees_the_rows_of_all_tenants(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(empty_database, "INSERT INTO spending VALUES ('a', '', 0, 1), ('b', '', 0, 1)")
    seen = []

    def upgrade(connection: MigrationConnection) -> None:
        seen.append(connection.execute(text("SELECT count(*) FROM spending")).scalar())

    monkeypatch.setattr(schema, "is_outdated", lambda *_: True)
    monkeypatch.setattr(schema, "upgrade", upgrade)
    await postgres_schema.upgrade_database(empty_database)
    assert seen == [2]
