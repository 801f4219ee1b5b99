"""The stores that the conformance suite runs over."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import MovableClock
from famulus_server.ports import Store
from famulus_server.store import schema
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


@pytest.fixture(params=["sqlite"])
async def store(tmp_path: Path, migrated_file: Path, clock: MovableClock) -> AsyncIterator[Store]:
    path = tmp_path / "famulus.db"
    shutil.copy(migrated_file, path)
    opened = SqliteStore(path=path, clock=clock)
    await opened.open()
    yield opened
    await opened.close()
