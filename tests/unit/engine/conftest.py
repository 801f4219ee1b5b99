"""A real store for the parts of the engine that read and write."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import MovableClock
from famulus_server.store.sqlite import SqliteStore


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def store(tmp_path: Path, clock: MovableClock) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path=tmp_path / "famulus.db", clock=clock)
    await opened.open()
    yield opened
    await opened.close()
