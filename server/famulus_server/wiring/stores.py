"""Opens the store, with the keys to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from famulus_server.config import EncryptionSettings, Settings
from famulus_server.encryption.key_sources import ask_for_key, is_exposed, read_key
from famulus_server.engine.clock import SystemClock
from famulus_server.ports import Clock
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.sqlite import SqliteStore
from famulus_server.wiring.progress import Progress

# Of the worker's own: one to renew leases, one for what else it does.
_WORKER_CONNECTIONS = 2
# Of a command: how many it has, and how long it waits for a statement.
_COMMAND_CONNECTIONS = 2
_COMMAND_SECONDS = 600.0

AnyStore = SqliteStore | PostgresStore


@contextlib.asynccontextmanager
async def open_store(settings: Settings, *, progress: Progress, with_keys: bool = True) -> AsyncIterator[AnyStore]:
    """The store alone, for a command that may take long; without its keys it shows nothing that is sealed. Raises
    KeyUnusable or StoreUnusable."""
    keys = await asyncio.to_thread(read_keys, settings.encryption, progress) if with_keys else None
    store: AnyStore
    if url := settings.store.url:
        store = PostgresStore(url=url, pool=_COMMAND_CONNECTIONS, timeout=_COMMAND_SECONDS, keys=keys)
    else:
        store = SqliteStore(path=settings.database, clock=SystemClock(), keys=keys)
    await store.open()
    try:
        if with_keys:
            await store.read(lambda tx: tx.keys.check())
        yield store
    finally:
        await store.close()


def connections_of(settings: Settings) -> int:
    """How many connections to PostgreSQL a replica may have."""
    return settings.store.pool + _WORKER_CONNECTIONS


def read_keys(encryption: EncryptionSettings, progress: Progress) -> KeyCache | None:
    """What seals and opens, None where nothing is encrypted. Raises KeyUnusable."""
    if not encryption.is_on:
        return None
    # Here, because `cryptography` takes a moment, and nobody else needs it.
    from famulus_server.encryption.aes import AesVault

    for file in key_files(encryption):
        if is_exposed(file):
            progress(f"[encryption] others than its owner may read {file}")
    keys = operators_keys(encryption)
    return KeyCache(vault=AesVault(key=keys[0], old=keys[1:]), scope=encryption.scope)


def key_files(encryption: EncryptionSettings) -> list[Path]:
    """The files that have keys of the operator."""
    return [Path(file).expanduser() for file in (encryption.key_file, *encryption.old_key_files) if file]


def operators_keys(encryption: EncryptionSettings) -> list[bytes]:
    """All keys of the operator, the one in use first. Raises KeyUnusable."""
    keys = [read_key(file) for file in key_files(encryption)]
    if encryption.key_command:
        keys.insert(0, ask_for_key(encryption.key_command))
    return keys


async def open_stores(
    settings: Settings, stack: contextlib.AsyncExitStack, keys: KeyCache | None
) -> tuple[AnyStore, AnyStore, Clock]:
    """The store; the same one for the worker, with connections of its own, so that callers who wait for one another
    cannot cost it its leases; and its clock: replicas go by the one of their database, whatever their own ones say."""
    url = settings.store.url
    if url:
        shared = PostgresStore(url=url, pool=settings.store.pool, keys=keys)
        await shared.open()
        stack.push_async_callback(shared.close)
        await shared.read(lambda tx: tx.keys.check())
        workers = PostgresStore(url=url, pool=_WORKER_CONNECTIONS, clock=shared.clock, keys=keys)
        await workers.open()
        stack.push_async_callback(workers.close)
        return shared, workers, shared.clock
    clock = SystemClock()
    store = SqliteStore(path=settings.database, clock=clock, keys=keys)
    await store.open()
    stack.push_async_callback(store.close)
    await store.read(lambda tx: tx.keys.check())
    return store, store, clock
