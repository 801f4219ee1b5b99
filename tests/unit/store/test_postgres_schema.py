"""The schema of a PostgreSQL database: made, kept, or refused with a clear word; and why a server is not reached."""

import asyncio
import socket
import sys

import pytest
from sqlalchemy.exc import ProgrammingError

from contract.samples import MovableClock
from famulus_server.store import postgres_schema, schema
from famulus_server.store.errors import NotAStore, SchemaTooNew, StoreUnreachable
from famulus_server.store.postgres import PostgresStore
from postgres import OWNER, PostgresServer, execute, query

TABLES = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'"
MIGRATE = """
import asyncio, sys
from famulus_server.store.postgres_schema import upgrade_database
print(repr(asyncio.run(upgrade_database(sys.argv[1]))))
"""


async def open_and_close(url: str) -> None:
    store = PostgresStore(url=url, clock=MovableClock())
    await store.open()
    await store.ping()
    await store.close()


async def test_new_database_is_given_the_schema_and_then_left_as_it_is(new_database: str) -> None:
    assert await postgres_schema.upgrade_database(new_database) == ""
    assert "runs" in (await query(new_database, TABLES)).split()
    assert await postgres_schema.upgrade_database(new_database) == schema.HEAD
    await open_and_close(new_database)


async def test_replicas_that_start_at_once_on_an_empty_database_migrate_it_once(new_database: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MIGRATE, new_database),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert await query(new_database, "SELECT string_agg(version_num, ' ') FROM alembic_version") == schema.HEAD
    await open_and_close(new_database)


async def test_database_that_is_up_to_date_is_opened_without_the_migration_tool(migrated_database: str) -> None:
    script = MIGRATE + "sys.exit(bool({'alembic', 'sqlalchemy'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, migrated_database, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0].decode().strip() == repr(schema.HEAD)
    assert process.returncode == 0


async def test_newer_database_is_refused(new_database: str) -> None:
    await postgres_schema.upgrade_database(new_database)
    execute(new_database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match="9999"):
        await open_and_close(new_database)


async def test_newer_version_that_was_faster_is_refused(new_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await postgres_schema.upgrade_database(new_database)
    execute(new_database, "UPDATE alembic_version SET version_num = '9999'")
    # What was seen before the lock was taken.
    monkeypatch.setattr(postgres_schema, "revision_of", lambda *_: asyncio.sleep(0, ""))
    with pytest.raises(SchemaTooNew, match="9999"):
        await postgres_schema.upgrade_database(new_database)


async def test_migration_that_breaks_off_leaves_nothing(new_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(new_database, "CREATE TABLE secrets (in_the_way text)")
    monkeypatch.setattr(postgres_schema, "revision_of", lambda *_: asyncio.sleep(0, ""))
    with pytest.raises(ProgrammingError):
        await postgres_schema.upgrade_database(new_database)
    assert await query(new_database, TABLES) == "secrets"


async def test_database_of_something_else_is_refused_and_left_alone(new_database: str) -> None:
    execute(new_database, "CREATE TABLE recipes (name text)")
    with pytest.raises(NotAStore, match="tables of something else"):
        await open_and_close(new_database)
    assert await query(new_database, TABLES) == "recipes"


async def test_database_that_cannot_hold_every_text_is_refused(postgres_server: PostgresServer) -> None:
    execute(postgres_server.url(), "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(NotAStore, match="LATIN1"):
        await open_and_close(postgres_server.url("latin"))


async def test_wrong_password_is_told_and_never_shown(postgres_server: PostgresServer) -> None:
    execute(postgres_server.url(user="postgres"), "CREATE ROLE locked LOGIN PASSWORD 'right'")
    with pytest.raises(StoreUnreachable, match='password authentication failed for user "locked"') as refused:
        await open_and_close(postgres_server.url(user="locked", password="wrong"))
    execute(postgres_server.url(user="postgres"), "DROP ROLE locked")
    assert "wrong" not in str(refused.value)
    assert str(refused.value).startswith("postgresql://locked@/postgres: ")


async def test_missing_database_is_told(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreUnreachable, match='database "nowhere" does not exist'):
        await open_and_close(postgres_server.url("nowhere"))


async def test_role_that_may_not_make_tables_is_told_what_it_lacks(
    postgres_server: PostgresServer, new_database: str
) -> None:
    execute(postgres_server.url(user="postgres"), "CREATE ROLE guest LOGIN")
    with pytest.raises(StoreUnreachable, match=r"permission denied for schema public\. The role must own"):
        await open_and_close(new_database.replace(OWNER, "guest", 1))
    assert await query(new_database, TABLES) is None


async def test_port_where_nobody_listens_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            StoreUnreachable, match=f"^postgresql://me@127.0.0.1:{port}/db: no PostgreSQL server answers there"
        ):
            await open_and_close(f"postgresql://me:hush@127.0.0.1:{port}/db?sslmode=disable")


@pytest.mark.parametrize("url", ["postgresql://me@host:port/db", "postgresql://me@[::1/db", "http://me@host/db"])
async def test_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(StoreUnreachable):
        await open_and_close(url)
