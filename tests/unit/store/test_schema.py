"""The schema of an SQLite file: made, kept, or refused with a clear word."""

import resource
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from contract.samples import START, TENANT, MovableClock, thread
from famulus_server.ports import Lifetimes
from famulus_server.store import schema
from famulus_server.store.columns import micros
from famulus_server.store.errors import NotAStore, SchemaTooNew, StoreUnreachable, StoreUnusable
from famulus_server.store.sqlite import SqliteStore


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def permissions(folder: Path) -> set[int]:
    return {stat.S_IMODE(made.stat().st_mode) for made in folder.iterdir()}


async def open_and_close(path: Path) -> None:
    store = SqliteStore(path=path, clock=MovableClock())
    await store.open()
    await store.ping()
    await store.close()


def test_head_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).with_name("migrations")))
    assert scripts.get_current_head() == schema.HEAD


@pytest.mark.parametrize("name", ["famulus.db", "a b%20?x=1#y'.db"])
async def test_new_file_is_made_for_its_owner_only(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    await open_and_close(path)
    assert "runs" in tables(path)
    assert permissions(tmp_path) == {0o600}
    await open_and_close(path)


def test_file_that_is_up_to_date_is_opened_without_the_migration_tool(path: Path) -> None:
    schema.upgrade_file(path)
    script = (
        "import sys, pathlib; from famulus_server.store import schema, sqlite;"
        "schema.upgrade_file(pathlib.Path(sys.argv[1]));"
        "sys.exit(bool({'alembic', 'sqlalchemy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 0


@pytest.mark.parametrize("size", [0, 8_192], ids=["no room at all", "too little for the tables"])
def test_disk_that_is_full_at_the_start_is_told(path: Path, size: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(StoreUnreachable, match=f"^{path} cannot be"):
            schema.upgrade_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    schema.upgrade_file(path)
    assert "runs" in tables(path)


def test_migration_that_breaks_off_leaves_nothing(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE secrets (in_the_way)")
    with pytest.raises(OperationalError):
        schema.migrate_file(path)
    assert tables(path) == {"secrets"}


async def test_newer_database_is_refused(path: Path) -> None:
    await open_and_close(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(SchemaTooNew, match="9999"):
        await open_and_close(path)


async def test_file_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    with pytest.raises(NotAStore):
        await open_and_close(path)
    assert tables(path) == {"recipes"}


def test_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"dear diary " * 100)
    with pytest.raises(StoreUnusable):
        schema.upgrade_file(path)
    assert path.read_bytes() == b"dear diary " * 100


async def test_threads_from_before_count_as_created_when_they_were_last_active(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as older:
        schema.upgrade(older, "0006")
        made = thread(user="ann")
        made.retention.Clear()
        row = (TENANT, made.id, "ann", micros(START), 1, 1, made.SerializeToString())
        columns = "tenant, id, user_id, last_activity, next_sequence, version, body"
        older.exec_driver_sql(f"INSERT INTO threads ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    engine.dispose()
    store = SqliteStore(path=path, clock=MovableClock())
    await store.open()
    rules = Lifetimes(after_create=timedelta(hours=1))
    for moment, found in ((START, []), (START + timedelta(hours=1), [made.id])):
        assert await store.read(lambda tx: tx.threads.outlived(TENANT, rules, moment, limit=9)) == found  # noqa: B023
    assert await store.read(lambda tx: tx.threads.of_user(TENANT, "ann", limit=9)) == [(made.id, False)]
    await store.close()
