"""The stores that the conformance suite runs over."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import MovableClock
from famulus_server.ports import Store
from famulus_server.store import schema
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.sqlite import SqliteStore


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store, to be copied: migrating one for each test would take long."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    schema.upgrade_file(path)
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def made_store(request: pytest.FixtureRequest, tmp_path: Path, clock: MovableClock) -> SqliteStore | PostgresStore:
    """An empty store of either kind."""
    if request.param == "postgres":
        return PostgresStore(url=request.getfixturevalue("empty_database"), clock=clock)
    path = tmp_path / "famulus.db"
    shutil.copy(request.getfixturevalue("migrated_file"), path)
    return SqliteStore(path=path, clock=clock)


@pytest.fixture
async def store(made_store: SqliteStore | PostgresStore) -> AsyncIterator[Store]:
    opened = made_store
    await opened.open()
    yield opened
    await opened.close()
