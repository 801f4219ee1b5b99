"""Keys are exchanged, at rest and under load, and nothing that was stored meanwhile is lost."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from contract.samples import (
    OTHER,
    START,
    TENANT,
    MovableClock,
    add_messages,
    add_run,
    add_thread,
    message,
    read_texts,
    run,
    thread,
)
from famulus_server.encryption.aes import AesVault, kek_id
from famulus_server.engine import key_rotation
from famulus_server.engine.key_rotation import renew, rewrap
from famulus_server.ports import Place, Transaction
from famulus_server.store.errors import BodyUnreadable
from famulus_server.store.key_cache import KeyCache, Scope
from famulus_server.store.postgres import PostgresStore
from postgres import until

OLD, NEW = b"o" * 32, b"n" * 32
TEXTS = [f"text {number}" for number in range(25)]
GRACE = 900.0
# What the connections to the database are at.
IDLE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Replicas:
    """Stores on one database, each with keys of its own, as servers and the command have them."""

    def __init__(self, url: str) -> None:
        self.clock = MovableClock()
        self._url = url
        self._open: list[PostgresStore] = []

    async def open(self, *keks: bytes, scope: Scope = "tenant") -> PostgresStore:
        """One more; without keys it is one that does not encrypt."""
        vault = AesVault(key=keks[0], old=keks[1:]) if keks else None
        keys = KeyCache(vault=vault, scope=scope, now=lambda: self.clock.now().timestamp()) if vault else None
        store = PostgresStore(url=self._url, pool=4, clock=self.clock, keys=keys)
        await store.open()
        self._open.append(store)
        return store

    async def close(self) -> None:
        for store in self._open:
            await store.close()


@pytest.fixture
async def replicas(empty_database: str) -> AsyncIterator[Replicas]:
    made = Replicas(empty_database)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_rotation, "_KEYS_AT_A_TIME", 2)
    monkeypatch.setattr(key_rotation, "_ROWS_AT_A_TIME", 3)


def silent(_: str) -> None:
    """Nobody looks on."""


async def plain_rows(store: PostgresStore) -> int:
    return sum((await store.read(lambda tx: tx.sealed.count_plain())).values())


async def test_after_a_rewrap_the_old_key_of_the_operator_is_needed_no_more(replicas: Replicas) -> None:
    before = await replicas.open(OLD, scope="thread")
    for number in range(5):
        await add_thread(before, f"thread_{number}", f"text {number}")
    store = await replicas.open(NEW, OLD, scope="thread")
    told: list[str] = []
    assert await rewrap(store, progress=told.append) == 5
    assert told == [f"{done} data keys wrapped by the new key" for done in (2, 4, 5)]
    assert await store.read(lambda tx: tx.keys.wrappings()) == {kek_id(NEW): 5}
    assert await rewrap(store, progress=silent) == 0
    after = await replicas.open(NEW, scope="thread")
    await after.read(lambda tx: tx.keys.check())
    assert await read_texts(after, "thread_3") == ["text 3"]


async def test_keys_of_several_tenants_are_wrapped_together(replicas: Replicas) -> None:
    before = await replicas.open(OLD)
    for tenant in (TENANT, OTHER, "third"):
        await before.write(lambda tx, tenant=tenant: tx.keys.obtain(tenant, ""))  # type: ignore[misc]
    store = await replicas.open(NEW, OLD)
    assert await rewrap(store, progress=silent) == 3
    assert await store.read(lambda tx: tx.keys.wrappings()) == {kek_id(NEW): 3}


async def test_database_that_was_not_encrypted_becomes_so(replicas: Replicas) -> None:
    plain = await replicas.open()
    await add_thread(plain, "thread_1", *TEXTS)
    await add_run(plain, run())
    store = await replicas.open(NEW)
    assert await plain_rows(store) == len(TEXTS) + 2
    told: list[str] = []
    assert await renew(store, grace=GRACE, progress=told.append) == 0
    assert told == ["threads: 1 rows encrypted", "messages: 25 rows encrypted", "runs: 1 rows encrypted"]
    assert await plain_rows(store) == 0
    assert await read_texts(store, "thread_1") == TEXTS
    with pytest.raises(BodyUnreadable):
        await read_texts(plain, "thread_1")


async def test_new_data_keys_replace_the_old_ones_once_nobody_uses_them(replicas: Replicas) -> None:
    store = await replicas.open(NEW)
    await add_thread(store, "thread_1", *TEXTS)
    server = await replicas.open(NEW)
    assert await read_texts(server, "thread_1") == TEXTS
    await add_messages(server, "thread_1", "warm")
    assert await renew(await replicas.open(NEW), grace=GRACE, progress=silent) == GRACE
    # A server that has not noticed goes on with the retired key.
    await add_messages(server, "thread_1", "late")
    assert len(await read_texts(await replicas.open(NEW), "thread_1")) == len(TEXTS) + 2
    replicas.clock.advance(GRACE - 1)
    assert await renew(await replicas.open(NEW), grace=GRACE, progress=silent) == 1
    replicas.clock.advance(1)
    told: list[str] = []
    assert await renew(await replicas.open(NEW), grace=GRACE, progress=told.append) == 0
    assert told == ["1 retired data keys removed"]
    assert await (await replicas.open(NEW)).read(lambda tx: tx.keys.wrappings()) == {kek_id(NEW): 1}
    assert await read_texts(await replicas.open(NEW), "thread_1") == [*TEXTS, "warm", "late"]


async def test_rows_move_to_keys_of_threads_when_the_scope_has_changed(replicas: Replicas) -> None:
    await add_thread(await replicas.open(NEW), "thread_1", *TEXTS)
    store = await replicas.open(NEW, scope="thread")
    await renew(store, grace=0, progress=silent)
    assert await read_texts(store, "thread_1") == TEXTS
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    assert await store.read(lambda tx: tx.keys.wrappings()) == {}


@pytest.mark.parametrize("scope", ["tenant", "thread"])
async def test_nothing_is_lost_that_is_written_while_keys_are_exchanged(replicas: Replicas, scope: Scope) -> None:
    server, command = await replicas.open(NEW, scope=scope), await replicas.open(NEW, scope=scope)
    await add_thread(server, "thread_1", *TEXTS)
    await add_run(server, run())
    written: list[str] = []
    stop = False

    async def write() -> None:
        for number in itertools.count():
            await add_messages(server, "thread_1", f"new {number}")
            await server.write(lambda tx: change(tx, number))  # noqa: B023 - it is awaited here
            written.append(f"new {number}")
            if stop:
                return

    async def change(tx: Transaction, number: int) -> None:
        changed = await tx.threads.get(TENANT, "thread_1", lock=True)
        changed.title = str(number)
        await tx.threads.replace(TENANT, changed)
        made = await tx.runs.get(TENANT, "run_1", lock=True)
        made.last_sequence = number
        await tx.runs.replace(TENANT, made, attempt=0)
        await tx.threads.insert(TENANT, thread(f"fork_{number}"))

    writing = asyncio.create_task(write())
    # Twice: while the server still seals with the key that it remembers, and once it does so no more.
    assert await renew(command, grace=GRACE, progress=silent) == GRACE
    assert written
    replicas.clock.advance(GRACE)
    assert await renew(command, grace=GRACE, progress=silent) == 0
    stop = True
    await writing
    reader = await replicas.open(NEW, scope=scope)
    assert await read_texts(reader, "thread_1") == [*TEXTS, *written]
    last = len(written) - 1
    assert (await reader.read(lambda tx: tx.runs.get(TENANT, "run_1"))).last_sequence == last
    assert (await reader.read(lambda tx: tx.threads.get(TENANT, "thread_1"))).title == str(last)


class Killed(Exception):
    """The command is no more."""


@pytest.mark.parametrize("steps", [1, 5, 12])
async def test_exchange_that_was_broken_off_goes_on_where_it_is_called_again(
    replicas: Replicas, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await replicas.open(NEW)
    await add_thread(server, "thread_1", *TEXTS)
    doomed, left = await replicas.open(NEW), steps

    class Doomed:
        read = staticmethod(doomed.read)

        @staticmethod
        async def write(unit: Callable[[Transaction], object]) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return await doomed.write(unit)  # type: ignore[arg-type]

    with pytest.raises(Killed):
        await renew(Doomed(), grace=0, progress=silent)  # type: ignore[arg-type]
    assert await read_texts(await replicas.open(NEW), "thread_1") == TEXTS
    again = await replicas.open(NEW)
    told: list[str] = []
    assert await renew(again, grace=0, progress=told.append) == 0
    # No keys are retired a second time.
    assert told[-1] == "1 retired data keys removed"
    assert await read_texts(await replicas.open(NEW), "thread_1") == TEXTS


async def test_row_that_is_stored_anew_at_the_moment_stays_as_that(replicas: Replicas, empty_database: str) -> None:
    plain, store = await replicas.open(), await replicas.open(NEW)
    await add_thread(plain, "thread_1", "a")
    go_on = asyncio.Event()

    async def change(tx: Transaction) -> None:
        await tx.messages.replace(TENANT, "thread_1", message("a", text="newer"))
        await go_on.wait()

    async def reseal(tx: Transaction) -> tuple[Place | None, int]:
        return await tx.sealed.reseal("messages", after=None, limit=10)

    changing = asyncio.create_task(plain.write(change))
    await until(empty_database, IDLE)
    resealing = asyncio.create_task(store.write(reseal))
    await until(empty_database, BLOCKED)
    go_on.set()
    await changing
    assert await resealing == (None, 0)
    assert await store.write(reseal) == (None, 1)
    assert await read_texts(store, "thread_1") == ["newer"]
