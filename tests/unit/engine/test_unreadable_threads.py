"""What nobody can read any more can still be deleted."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from contract.samples import TENANT, MovableClock, add_messages, add_run, run, thread
from famulus.v1.run_pb2 import RunState
from famulus_server.encryption.aes import AesVault
from famulus_server.engine.clock import TimeOrderedIds
from famulus_server.engine.policy import Policies, Policy, Retention, Tier
from famulus_server.engine.retention import Sweeper
from famulus_server.engine.threads import ThreadDesk
from famulus_server.engine.user_data import UserDataDesk
from famulus_server.errors import NotFound
from famulus_server.store.errors import BodyUnreadable
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import aftermath

USER = "ann"


def encrypted(path: Path, clock: MovableClock) -> SqliteStore:
    return SqliteStore(path=path, clock=clock, keys=KeyCache(vault=AesVault(key=b"k" * 32), scope="thread"))


@pytest.fixture
async def store(tmp_path: Path, clock: MovableClock) -> AsyncIterator[SqliteStore]:
    """A thread with an active run, and one whose run has ended, after the loss of their keys."""
    path = tmp_path / "famulus.db"
    filled = encrypted(path, clock)
    await filled.open()
    for name, state in (("busy", RunState.RUN_STATE_IN_PROGRESS), ("idle", RunState.RUN_STATE_COMPLETED)):
        await filled.write(lambda tx, name=name: tx.threads.insert(TENANT, thread(name, user=USER)))  # type: ignore[misc]
        await add_messages(filled, name, f"said in {name}")
        await add_run(filled, run(f"run_{name}", thread_id=name, state=state))
    await filled.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM data_keys WHERE scope_id <> ''")
        connection.commit()
    opened = encrypted(path, clock)
    await opened.open()
    for name in ("busy", "idle"):
        with pytest.raises(BodyUnreadable):
            await opened.read(lambda tx, name=name: tx.threads.get(TENANT, name))  # type: ignore[misc]
        with pytest.raises(BodyUnreadable):
            await opened.read(lambda tx, name=name: tx.runs.get(TENANT, f"run_{name}"))  # type: ignore[misc]
    yield opened
    await opened.close()


async def left(store: SqliteStore) -> set[str]:
    found = set()
    for name in ("busy", "idle"):
        try:
            await store.write(lambda tx, name=name: tx.threads.outline(TENANT, name))  # type: ignore[misc]
        except NotFound:
            continue
        found.add(name)
    return found


async def test_thread_can_be_deleted(store: SqliteStore, clock: MovableClock) -> None:
    ids = TimeOrderedIds(clock=clock)
    desk = ThreadDesk(store=store, aftermath=aftermath(store), policies=Policies(), clock=clock, ids=ids)
    for name in ("busy", "idle"):
        await desk.delete(TENANT, name, "")
    assert await left(store) == set()


async def test_users_data_can_be_deleted(store: SqliteStore, clock: MovableClock) -> None:
    ids = TimeOrderedIds(clock=clock)
    desk = UserDataDesk(store=store, aftermath=aftermath(store), wipes=(), clock=clock, ids=ids)
    counts = (await desk.delete(TENANT, USER, None)).counts
    assert (counts.threads, counts.messages, counts.runs) == (2, 2, 2)
    assert await left(store) == set()


async def test_thread_goes_when_its_time_is_over(store: SqliteStore, clock: MovableClock) -> None:
    policies = Policies(Policy(tiers={"default": Tier(retention=Retention(after_create_days=1))}))
    made = Sweeper(store=store, aftermath=aftermath(store), policies=policies, clock=clock, tombstone_days=30)
    clock.advance(86_400.0)
    await made.sweep()
    # Its run could still end, as far as its columns tell.
    assert await left(store) == {"busy"}
