"""What an encrypted store leaves in its file, and what it takes back from there."""

import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from contract.samples import (
    OTHER,
    START,
    TENANT,
    add_messages,
    add_run,
    add_thread,
    assistant,
    claim_runs,
    message,
    read_texts,
    run,
    step,
    thread,
)
from famulus_server.errors import NotFound
from famulus_server.ports import Lease, Store, ThreadFilter, Transaction, Turn
from famulus_server.store import schema
from famulus_server.store.errors import BodyUnreadable, KeysUnusable
from famulus_server.store.key_cache import Scope
from famulus_server.store.sqlite import SqliteStore
from unit.store.sealing import KEK, MARK, filled, key_cache, opened

SCOPES: list[Scope] = ["tenant", "thread"]
LATER = Lease(owner="w", seconds=10)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.db"
    schema.upgrade_file(path)
    return path


@pytest.fixture
def path(tmp_path: Path, empty: Path) -> Path:
    """An empty store, copied because it takes long to make one."""
    return Path(shutil.copy(empty, tmp_path / "famulus.db"))


def on_disk(path: Path) -> bytes:
    """The file, and what SQLite keeps beside it."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def sql(path: Path, statement: str, *args: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(statement, args).fetchall()
        connection.commit()
    return rows


async def write_marks(store: Store) -> None:
    """Everything that has a body, with the mark in all that it may say."""
    await store.write(lambda tx: tx.assistants.insert(TENANT, filled(assistant())))
    # Its metadata are searched, and so they are not encrypted.
    said = filled(thread(metadata={"k": "v"}))
    said.metadata.clear()
    said.user_id = "ann"
    await store.write(lambda tx: tx.threads.insert(TENANT, said))
    words = filled(message("msg_1", text=MARK))
    words.run_id = ""
    await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", [words]))
    await store.write(lambda tx: tx.threads.fork(TENANT, "thread_1", 1, thread("thread_2")))
    await store.write(lambda tx: tx.messages.replace(TENANT, "thread_2", filled(message("msg_1", text=f"{MARK}!"))))
    asked = run()
    asked.model = "m"
    await add_run(store, filled(asked))
    [claimed] = await claim_runs(store, LATER)
    await store.write(lambda tx: tx.runs.replace(TENANT, claimed.run, attempt=claimed.run.attempt, lease=LATER))
    await store.write(lambda tx: tx.runs.keep_messages(TENANT, "run_1", [message("msg_2", text=MARK)]))
    await store.write(lambda tx: tx.steps.put(TENANT, filled(step())))
    turn = Turn(number=1, seen_sequence=1, items=[{"text": MARK}])
    await store.write(lambda tx: tx.turns.put(TENANT, "run_1", turn))


@pytest.mark.parametrize("scope", SCOPES)
async def test_nothing_that_was_said_is_in_any_file(scope: Scope, path: Path) -> None:
    async with opened(path, key_cache(scope)) as store:
        await write_marks(store)
        # The log of changes is still there.
        assert path.with_name(f"{path.name}-wal").stat().st_size > 0
        assert MARK.encode() not in on_disk(path)
        assert await read_texts(store, "thread_2") == [f"{MARK}!"]
        assert (await store.read(lambda tx: tx.turns.all(TENANT, "run_1")))[0].items == [{"text": MARK}]
        assert sum((await store.read(lambda tx: tx.sealed.count_plain())).values()) == 0
    assert MARK.encode() not in on_disk(path)


async def test_without_encryption_all_of_it_is_in_the_file(path: Path) -> None:
    async with opened(path, None) as store:
        await write_marks(store)
        plain = await store.read(lambda tx: tx.sealed.count_plain())
    assert on_disk(path).count(MARK.encode()) > 20
    assert set(plain) == set(store_tables(path))
    assert all(plain.values())


def store_tables(path: Path) -> set[str]:
    """The tables with a column for what is said."""
    tables = [str(name) for (name,) in sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {name: {str(row[1]) for row in sql(path, f"PRAGMA table_info({name})")} for name in tables}
    # Those have ids, counts and outcomes only.
    others = {"audit_log", "deletions"}
    return {name for name in tables if columns[name] & {"body", "items"}} - others


async def test_plain_and_sealed_rows_live_side_by_side(path: Path) -> None:
    async with opened(path, None) as store:
        await add_thread(store, "thread_1", "old")
    async with opened(path, key_cache()) as store:
        await add_messages(store, "thread_1", "new")
        assert await read_texts(store, "thread_1") == ["old", "new"]
        assert (await store.read(lambda tx: tx.sealed.count_plain()))["messages"] == 1


TAMPERING = {
    "a flipped bit": "UPDATE messages SET body = CAST(substr(body, 1, 60) || x'00' || substr(body, 62) AS BLOB)",
    "another message's body": "UPDATE messages SET body = (SELECT body FROM messages WHERE id = 'b') WHERE id = 'a'",
    "another tenant's body": "UPDATE messages SET body = (SELECT body FROM messages WHERE tenant = 'globex')",
    "another tenant's row": "UPDATE messages SET tenant = 'acme', log_id = 'thread_1', sequence = 9 WHERE id = 'c'",
    "an unknown version": "UPDATE messages SET body = CAST(x'0002' || substr(body, 3) AS BLOB)",
    "too short": "UPDATE messages SET body = substr(body, 1, 20)",
    "no key": "DELETE FROM data_keys",
    "another tenant's key": "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE tenant = 'globex')",
}


@pytest.mark.parametrize("tampering", TAMPERING)
async def test_tampering_is_found_and_told_without_contents(tampering: str, path: Path) -> None:
    async with opened(path, key_cache()) as store:
        await add_thread(store, "thread_1", "a", "b")
        await add_thread(store, "thread_9", "c", tenant=OTHER)
    sql(path, TAMPERING[tampering])
    async with opened(path, key_cache()) as store:
        with pytest.raises(BodyUnreadable, match=r"^messages.*cannot be opened") as caught:
            await read_texts(store, "thread_1")
        assert "text" not in str(caught.value)


async def test_body_of_another_table_is_refused_though_its_row_has_the_same_key(path: Path) -> None:
    async with opened(path, key_cache()) as store:
        await add_run(store, run())
        await store.write(lambda tx: tx.steps.put(TENANT, step()))
        await store.write(lambda tx: tx.turns.put(TENANT, "run_1", Turn(number=1, seen_sequence=1, items=[])))
    sql(path, "UPDATE run_steps SET body = (SELECT items FROM run_turns)")
    async with opened(path, key_cache()) as store:
        with pytest.raises(BodyUnreadable, match="sealed by another key or as something else"):
            await store.read(lambda tx: tx.steps.page(TENANT, "run_1"))


async def test_run_that_cannot_be_opened_keeps_no_other_from_being_claimed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path, key_cache()) as store:
        for number in range(3):
            await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}"))
    sql(path, "UPDATE runs SET body = substr(body, 1, 40) WHERE id = 'run_0'")
    async with opened(path, key_cache()) as store:
        assert [claimed.run.id for claimed in await claim_runs(store, LATER)] == ["run_1", "run_2"]
    assert "runs ('run_0',) of tenant 'acme' cannot be opened" in caplog.text


async def test_body_is_unreadable_without_keys(path: Path) -> None:
    async with opened(path, key_cache()) as store:
        await add_thread(store, "thread_1", "a")
    async with opened(path, None) as store:
        with pytest.raises(BodyUnreadable, match="encryption is not configured"):
            await read_texts(store, "thread_1")


async def test_keys_that_do_not_fit_are_told_at_the_start(path: Path) -> None:
    async with opened(path, None) as store:
        await store.read(lambda tx: tx.keys.check())
    async with opened(path, key_cache()) as store:
        await add_thread(store, "thread_1", "a")
        await store.read(lambda tx: tx.keys.check())
    async with opened(path, None) as store:
        with pytest.raises(KeysUnusable, match="rows of the database are encrypted"):
            await store.read(lambda tx: tx.keys.check())
    async with opened(path, key_cache(kek=b"x" * 32)) as store:
        with pytest.raises(KeysUnusable, match="old_key_files"):
            await store.read(lambda tx: tx.keys.check())
    async with opened(path, key_cache(kek=b"x" * 32, old=(KEK,))) as store:
        await store.read(lambda tx: tx.keys.check())
    sql(path, "UPDATE data_keys SET wrapped = x'00'")
    async with opened(path, key_cache()) as store:
        with pytest.raises(KeysUnusable, match="cannot be opened"):
            await store.read(lambda tx: tx.keys.check())


async def test_key_that_was_undone_with_its_unit_seals_nothing(path: Path) -> None:
    async with opened(path, key_cache()) as store:

        async def unit(tx: Transaction) -> None:
            await tx.threads.insert(TENANT, thread())
            raise NotFound("thread", "none")

        with pytest.raises(NotFound):
            await store.write(unit)
        assert sql(path, "SELECT * FROM data_keys") == []
        await add_thread(store, "thread_2", "a")
    async with opened(path, key_cache()) as store:
        assert await read_texts(store, "thread_2") == ["a"]


def restore_keys(today: Path, copy: Path) -> None:
    keys = sql(today, "SELECT * FROM data_keys")
    sql(copy, "DELETE FROM data_keys")
    for key in keys:
        sql(copy, f"INSERT INTO data_keys VALUES ({', '.join('?' * len(key))})", *key)


async def test_deleted_threads_key_is_gone_from_the_database_and_from_memory(path: Path) -> None:
    keys = key_cache("thread")
    async with opened(path, keys) as store:
        await add_thread(store, "thread_1", "a")
        await add_thread(store, "thread_2", "b")
        copy = path.with_name("backup.db")
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        [(key_id,)] = sql(path, "SELECT id FROM data_keys WHERE scope_id = 'thread_1'")
        assert keys.by_id.get((TENANT, str(key_id))) is keys.in_use.get((TENANT, "thread_1")) is not None
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
        assert keys.by_id.get((TENANT, str(key_id))) is keys.in_use.get((TENANT, "thread_1")) is None
        assert sql(path, "SELECT DISTINCT scope_id FROM data_keys ORDER BY scope_id") == [("thread_2",)]
    # Whoever restores the rows of a backup has today's keys.
    restore_keys(path, copy)
    async with opened(copy, key_cache("thread")) as store:
        assert await read_texts(store, "thread_2") == ["b"]
        with pytest.raises(BodyUnreadable, match="its key is gone"):
            await read_texts(store, "thread_1")


async def test_fork_reads_on_when_its_origin_and_the_origins_key_are_gone(path: Path) -> None:
    async with opened(path, key_cache("thread")) as store:
        await add_thread(store, "thread_1", "a", "b")
        # The second changes what it shares with the first, and the third takes that along.
        await store.write(lambda tx: tx.threads.fork(TENANT, "thread_1", 2, thread("thread_2")))
        await store.write(lambda tx: tx.messages.replace(TENANT, "thread_2", message("b", text="changed")))
        await store.write(lambda tx: tx.threads.fork(TENANT, "thread_2", 2, thread("thread_3")))
        for thread_id in ("thread_1", "thread_2"):
            await store.write(lambda tx, t=thread_id: tx.threads.bury(TENANT, t, START))  # type: ignore[misc]
        # The first one's messages are still shown.
        assert scopes(path) == {"thread_1", "thread_3"}
    async with opened(path, key_cache("thread")) as store:
        assert await read_texts(store, "thread_3") == ["a", "changed"]
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_3", START))
    assert scopes(path) == set()


def scopes(path: Path) -> set[object]:
    return {scope for (scope,) in sql(path, "SELECT scope_id FROM data_keys")}


@pytest.mark.parametrize("scope", SCOPES)
async def test_warm_keys_cost_no_statement(scope: Scope, path: Path, empty: Path) -> None:
    async def cost(store: SqliteStore) -> list[int]:
        """Of each step of a run on a thread that is known."""
        await add_thread(store, "thread_1", "a")
        await store.write(lambda tx: tx.assistants.insert(TENANT, assistant()))
        costs = []
        units: list[Callable[[], Awaitable[object]]] = [
            lambda: add_run(store, run()),
            lambda: claim_runs(store, LATER),
            lambda: store.write(lambda tx: tx.messages.append(TENANT, "thread_1", [message("b"), message("c")])),
            lambda: store.write(lambda tx: tx.steps.put(TENANT, step())),
            lambda: store.write(lambda tx: tx.turns.put(TENANT, "run_1", Turn(number=1, seen_sequence=1, items=[]))),
            lambda: store.write(lambda tx: tx.runs.keep_messages(TENANT, "run_1", [message("d")])),
            lambda: store.read(lambda tx: tx.messages.page(TENANT, "thread_1", limit=9)),
            lambda: store.read(lambda tx: tx.turns.all(TENANT, "run_1")),
            lambda: store.read(lambda tx: tx.assistants.get(TENANT, "asst_1")),
        ]
        for unit in units:
            before = store.stats.statements
            await unit()
            costs.append(store.stats.statements - before)
        return costs

    async with opened(path, None) as store:
        plain = await cost(store)
    async with opened(Path(shutil.copy(empty, path.with_name("sealed.db"))), key_cache(scope)) as store:
        assert await cost(store) == plain


async def test_page_of_many_keys_costs_one_statement_more(path: Path) -> None:
    ids = [f"thread_{number}" for number in range(1, 10)]
    async with opened(path, key_cache("thread")) as store:
        for thread_id in ids:
            await add_thread(store, thread_id)
    async with opened(path, key_cache("thread")) as store:
        costs = []
        for _ in range(2):
            before = store.stats.statements
            # In a transaction, which a read has only where it takes more than one statement.
            found = await store.write(lambda tx: tx.threads.page(TENANT, ThreadFilter(), after=None, limit=100))
            costs.append(store.stats.statements - before)
            assert sorted(one.id for one in found) == ids
    assert costs[0] == costs[1] + 1


async def test_what_is_deleted_does_not_stay_in_the_file(path: Path) -> None:
    async with opened(path, key_cache("thread")) as store:
        await add_thread(store, "thread_1", "a")
        [(wrapped,)] = sql(path, "SELECT wrapped FROM data_keys")
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    assert isinstance(wrapped, bytes)
    assert wrapped not in on_disk(path)
