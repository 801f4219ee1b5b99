"""An embedded store in a file of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.samples import MovableClock
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
