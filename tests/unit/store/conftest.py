"""An embedded store in a file of its own; stores of replicas on one PostgreSQL database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import MovableClock
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "famulus.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path=path, clock=MovableClock(), patience=0.05)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def replicas(empty_database: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """Two replicas' stores."""
    one, other = (PostgresStore(url=empty_database, pool=8) for _ in range(2))
    await one.open()
    await other.open()
    yield one, other
    await one.close()
    await other.close()


@pytest.fixture
def replica(replicas: tuple[PostgresStore, PostgresStore]) -> PostgresStore:
    return replicas[0]
