"""What the embedded store promises beyond the port: group commit, recovery, one process."""

import asyncio
import resource
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import pytest

from contract.samples import (
    START,
    TENANT,
    MovableClock,
    add_messages,
    add_thread,
    claim_runs,
    message,
    read_texts,
    run,
    thread,
)
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_pb2 import RunState
from famulus_server.errors import NotFound, Unavailable
from famulus_server.ports import Lease, Transaction
from famulus_server.store.errors import StoreInUse
from famulus_server.store.sqlite import SqliteStore

APPENDS = """
import asyncio, datetime, pathlib, sys
from famulus.v1.message_pb2 import Message
from famulus.v1.thread_pb2 import Thread
from famulus_server.store.sqlite import SqliteStore

class Clock:
    def now(self):
        return datetime.datetime.now(datetime.UTC)

async def append(store, task):
    for number in range(1_000_000):
        message = Message(id=f"{task}-{number}")
        await store.write(lambda tx: tx.messages.append("acme", "thread_1", [message]))
        print(message.id, flush=True)

async def main():
    store = SqliteStore(path=pathlib.Path(sys.argv[1]), clock=Clock())
    await store.open()
    await store.write(lambda tx: tx.threads.insert("acme", Thread(id="thread_1")))
    await asyncio.gather(*(append(store, task) for task in range(8)))

asyncio.run(main())
"""


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file may grow beyond what the write-ahead log has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{path}-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_concurrent_writers_share_commits(store: SqliteStore) -> None:
    await add_thread(store, "thread_1")
    before = store.stats.commits

    async def writer(number: int) -> None:
        for part in range(5):
            await add_messages(store, "thread_1", f"{number}-{part}")

    await asyncio.gather(*(writer(number) for number in range(64)))
    assert len(await read_texts(store, "thread_1")) == 320
    assert store.stats.commits - before <= 160


async def test_unit_that_awaits_something_else_fails_alone(store: SqliteStore) -> None:
    async def unit(tx: Transaction) -> None:
        await tx.threads.insert(TENANT, thread("half"))
        await asyncio.sleep(0)

    stray, good = await asyncio.gather(store.write(unit), add_thread(store, "thread_1", "a"), return_exceptions=True)
    assert isinstance(stray, RuntimeError)
    assert good is None
    with pytest.raises(RuntimeError):
        await store.read(lambda _: asyncio.sleep(0))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.threads.get(TENANT, "half"))
    assert await read_texts(store, "thread_1") == ["a"]


async def test_unit_is_guarded_only_where_one_beside_it_has_to_be_undone(store: SqliteStore) -> None:
    await add_thread(store, "thread_1")

    async def refused(tx: Transaction) -> None:
        await tx.threads.get(TENANT, "none")

    async def broken(tx: Transaction) -> None:
        await tx.threads.touch(TENANT, "thread_1", START)
        raise LookupError

    async def good(tx: Transaction) -> None:
        await tx.threads.touch(TENANT, "thread_1", START)

    async def together(*units: Callable[[Transaction], Awaitable[None]]) -> tuple[int, int]:
        """Statements and commits of a batch."""
        at_work, go_on = Event(), Event()

        async def holding(_: Transaction) -> None:
            at_work.set()
            go_on.wait()

        before, held = store.stats, asyncio.create_task(store.write(holding))
        await asyncio.to_thread(at_work.wait)
        waiting = [asyncio.create_task(store.write(unit)) for unit in units]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(held, *waiting, return_exceptions=True)
        after = store.stats
        # All but BEGIN and COMMIT of the one that held the others up.
        return after.statements - before.statements - 2, after.commits - before.commits - 1

    assert await together(good, refused, good) == (1 + 3 + 1, 1)
    assert await together(broken) == (1 + 1 + 1, 0)
    # The first two in vain; then each in its savepoint, and one back to it.
    assert await together(good, broken, good) == (1 + 2 + 1 + 1 + 3 * 3 + 1 + 1, 1)


async def test_unit_that_only_reads_cannot_write(store: SqliteStore) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await store.read(lambda tx: tx.threads.insert(TENANT, thread()))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))


@pytest.mark.parametrize("size", [100_000, 8_000_000], ids=["at the commit", "within a statement"])
async def test_full_disk_fails_the_batch_and_the_store_recovers(store: SqliteStore, path: Path, size: int) -> None:
    await add_thread(store, "thread_1", "before")
    big = message("big", text="x" * size)
    with full_disk(path):
        outcomes = await asyncio.gather(
            store.write(lambda tx: tx.messages.append(TENANT, "thread_1", [big])),
            add_messages(store, "thread_1", "neighbour"),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], Unavailable)
        assert outcomes[0].reason == ErrorReason.ERROR_REASON_STORE_UNAVAILABLE
        assert outcomes[0].retry_after
        assert await read_texts(store, "thread_1") in (["before"], ["before", "neighbour"])
        assert (outcomes[1] is None) == ("neighbour" in await read_texts(store, "thread_1"))
    await add_messages(store, "thread_1", "after")
    assert (await read_texts(store, "thread_1"))[-1] == "after"


async def test_lock_of_a_foreign_tool_is_unavailable_not_an_error_of_ours(store: SqliteStore, path: Path) -> None:
    await add_thread(store, "thread_1")
    with closing(sqlite3.connect(path, isolation_level=None)) as tool:
        tool.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await add_messages(store, "thread_1", "a")
        assert await read_texts(store, "thread_1") == []
        tool.execute("ROLLBACK")
    await add_messages(store, "thread_1", "a")
    assert await read_texts(store, "thread_1") == ["a"]


async def test_store_is_for_one_process(store: SqliteStore, path: Path) -> None:
    second = SqliteStore(path=path, clock=MovableClock())
    with pytest.raises(StoreInUse, match=path.name):
        await second.open()
    await store.close()
    await second.open()
    await second.close()


async def test_close_finishes_what_was_begun_and_takes_no_more(store: SqliteStore, path: Path) -> None:
    await add_thread(store, "thread_1")
    begun = [asyncio.create_task(add_messages(store, "thread_1", f"m{number}")) for number in range(100)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*begun)
    for late in (store.ping(), add_messages(store, "thread_1", "late")):
        with pytest.raises(Unavailable):
            await late
    again = SqliteStore(path=path, clock=MovableClock())
    await again.open()
    assert len(await read_texts(again, "thread_1")) == 100
    await again.close()


async def test_store_that_was_never_opened_is_unavailable_and_can_be_closed(path: Path) -> None:
    store = SqliteStore(path=path, clock=MovableClock())
    with pytest.raises(Unavailable):
        await store.ping()
    await store.close()


async def test_acknowledged_writes_survive_a_kill(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", APPENDS, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = [(await process.stdout.readline()).decode().strip() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).decode()
    # The last line may be cut off.
    acknowledged += rest[: rest.rfind("\n") + 1].split()
    assert await process.wait() == -signal.SIGKILL

    store = SqliteStore(path=path, clock=MovableClock())
    await store.open()
    stored = await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", limit=1_000_000))
    await store.close()
    assert set(acknowledged) - {made.id for made in stored} == set()
    assert [made.sequence for made in stored] == list(range(1, len(stored) + 1))


async def test_commit_waits_for_the_disk(store: SqliteStore) -> None:
    # A killed process loses nothing even without; a power cut would, and no test can cut the power.
    with closing(store._connect(0)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_runs_of_an_earlier_process_are_claimable_at_once(store: SqliteStore) -> None:
    made = run(state=RunState.RUN_STATE_IN_PROGRESS)
    await store.write(lambda tx: tx.runs.insert(TENANT, made, lease=Lease("dead", 15)))
    lease = Lease("next", 15)
    assert await claim_runs(store, lease, limit=1) == []
    await store.close()
    await store.open()
    claimed = await claim_runs(store, lease, limit=1)
    assert [(one.run.id, one.taken_over) for one in claimed] == [("run_1", True)]


async def test_store_with_too_much_to_do_refuses_and_goes_on(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_thread(store, "thread_1")
    monkeypatch.setattr("famulus_server.store.lanes._MAX_WAITING", 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as tool:
        # A lock of a foreign tool holds the writer up, so that units gather behind it.
        tool.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(add_messages(store, "thread_1", f"m{number}")) for number in range(100)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        tool.execute("ROLLBACK")
    reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, Unavailable)}
    assert ErrorReason.ERROR_REASON_SERVER_OVERLOADED in reasons
    await add_messages(store, "thread_1", "after")
    assert await read_texts(store, "thread_1") == ["after"]


async def test_wiped_file_has_nothing_of_what_was_deleted(store: SqliteStore, path: Path) -> None:
    def files_with(word: bytes) -> list[str]:
        return [file.name for file in path.parent.iterdir() if word in file.read_bytes()]

    await add_thread(store, "thread_1", *(f"Xq7 {number}" for number in range(500)))
    await store.wipe()
    assert files_with(b"Xq7") == [path.name]
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    await store.wipe()
    assert files_with(b"Xq7") == []
    assert path.with_name(f"{path.name}-wal").stat().st_size == 0


async def test_log_that_cannot_be_emptied_is_told(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await add_thread(store, "thread_1", "Xq7")
    with closing(sqlite3.connect(path, isolation_level=None)) as tool:
        tool.execute("BEGIN")
        tool.execute("SELECT count(*) FROM messages").fetchone()
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
        await store.wipe()
        tool.execute("COMMIT")
    [told] = [record.message for record in caplog.records if "cannot be emptied" in record.message]
    assert "somebody else reads the file" in told
    caplog.clear()
    await store.wipe()
    assert not caplog.records
