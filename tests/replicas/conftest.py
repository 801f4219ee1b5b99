"""Replicas that share a PostgreSQL database and a Valkey server: in this process, or in others that may be killed."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.embedded.valkey import EmbeddedValkey
from replicas.redis_faults import Valkey
from run_stage import Stage, open_stage, stage_settings

OpenReplica = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


@pytest.fixture
def valkey(tmp_path: Path) -> EmbeddedValkey:
    """Not started yet."""
    return EmbeddedValkey(data_dir=tmp_path / "valkey")


@pytest_asyncio.fixture
async def shared(valkey: EmbeddedValkey, empty_database: str) -> AsyncIterator[dict[str, Any]]:
    """What the settings of all replicas have in common."""
    yield {"redis_url": await valkey.start(), "database_url": empty_database}
    await valkey.close()


@pytest_asyncio.fixture
async def redis(valkey: EmbeddedValkey, tmp_path: Path, shared: dict[str, Any]) -> AsyncIterator[Valkey]:
    """The server that the replicas share, to be broken."""
    server = Valkey(valkey, tmp_path / "valkey/valkey", shared["redis_url"])
    yield server
    # Otherwise it does not end in time.
    await server.thaw()


@pytest.fixture
def open_replica(tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any]) -> OpenReplica:
    """Opens a replica in this process; further settings are those of `stage_settings`."""
    opened = 0

    @asynccontextmanager
    async def open_one(**settings: Any) -> AsyncIterator[Stage]:
        nonlocal opened
        opened += 1
        made = stage_settings(tmp_path / f"replica{opened}", upstream.base_url, **shared, **settings)
        async with open_stage(made, upstream) as stage:
            yield stage

    return open_one
