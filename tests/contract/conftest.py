"""The stores that the conformance suite runs over, and a Valkey."""

import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from redis.asyncio import Redis

from contract.samples import MovableClock
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.encryption.aes import AesVault
from famulus_server.ports import Store
from famulus_server.store import schema
from famulus_server.store.key_cache import KeyCache, Scope
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


ENCRYPTED: Mapping[str, Scope] = {"tenant-keys": "tenant", "thread-keys": "thread"}


@pytest.fixture(params=["sqlite", "postgres", "sqlite-tenant-keys", "sqlite-thread-keys", "postgres-thread-keys"])
def made_store(request: pytest.FixtureRequest, tmp_path: Path, clock: MovableClock) -> SqliteStore | PostgresStore:
    """An empty store of either kind, also encrypted."""
    engine, _, encrypted = request.param.partition("-")
    keys = KeyCache(vault=AesVault(key=b"k" * 32), scope=ENCRYPTED[encrypted]) if encrypted else None
    if engine == "postgres":
        return PostgresStore(url=request.getfixturevalue("empty_database"), clock=clock, keys=keys)
    path = tmp_path / "famulus.db"
    shutil.copy(request.getfixturevalue("migrated_file"), path)
    return SqliteStore(path=path, clock=clock, keys=keys)


@pytest.fixture
async def store(made_store: SqliteStore | PostgresStore) -> AsyncIterator[Store]:
    opened = made_store
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    embedded = EmbeddedValkey(data_dir=tmp_path)
    yield embedded
    await embedded.close()


@pytest.fixture
async def url(valkey: EmbeddedValkey) -> str:
    return await valkey.start()


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as client:
        yield client


@pytest.fixture
async def log(url: str) -> AsyncIterator[RedisEventLog]:
    opened = RedisEventLog(url=url, patience=Patience())
    opened.open()
    yield opened
    await opened.close()
