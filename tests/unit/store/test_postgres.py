"""Units of work on PostgreSQL that meet others: of this replica and of another one."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from contract.samples import (
    START,
    TENANT,
    add_messages,
    add_run,
    add_thread,
    assistant,
    claim_runs,
    read_texts,
    run,
    step,
    thread,
)
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus_server.errors import AlreadyExists, LeaseLost, NotFound, Unavailable
from famulus_server.ports import Lease, RequestKey, ThreadFilter, Transaction
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.session import RunAgain
from postgres import execute, query, until

Replicas = tuple[PostgresStore, PostgresStore]
KEY = RequestKey("CreateThread", "request", b"fingerprint")

CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND "
COMMITTING = "query = 'COMMIT' AND state = 'active'"
SLOW_COMMITS = """
    CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep(10); RETURN NULL; END $$ LANGUAGE plpgsql;
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON secrets DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait();
"""


async def ids(store: PostgresStore) -> list[str]:
    threads = await store.read(lambda tx: tx.threads.page(TENANT, ThreadFilter(), after=None, limit=99))
    return [one.id for one in threads]


async def test_many_equal_requests_at_once_make_one_resource(replicas: Replicas) -> None:
    async def unit(tx: Transaction, number: int) -> str:
        known = await tx.requests.find(TENANT, KEY)
        if known is not None:
            return known
        await tx.threads.insert(TENANT, thread(f"thread_{number}"))
        await tx.requests.remember(TENANT, KEY, f"thread_{number}")
        return f"thread_{number}"

    def create(number: int) -> Awaitable[str]:
        return replicas[number % 2].write(lambda tx: unit(tx, number))

    made = set(await asyncio.gather(*(create(number) for number in range(64))))
    assert len(made) == 1
    assert set(await ids(replicas[0])) == made


async def test_request_id_of_another_request_is_refused_although_units_are_run_again(replica: PostgresStore) -> None:
    await replica.write(lambda tx: tx.requests.remember(TENANT, KEY, "thread_1"))
    with pytest.raises(AlreadyExists):
        await replica.write(lambda tx: tx.requests.remember(TENANT, KEY, "thread_2"))


async def test_claims_of_two_replicas_never_give_a_run_to_both(replicas: Replicas) -> None:
    for number in range(60):
        await add_run(replicas[0], run(f"run_{number}", thread_id=f"thread_{number}"))

    async def worker(number: int) -> list[str]:
        claimed: list[str] = []
        lease = Lease(f"worker {number}", 15)
        while some := await claim_runs(replicas[number % 2], lease, limit=3):
            claimed += [one.run.id for one in some]
        return claimed

    claims = await asyncio.gather(*(worker(number) for number in range(8)))
    claimed = [run_id for some in claims for run_id in some]
    assert len(claimed) == len(set(claimed))
    # A claim that met only rows that others had locked found nothing, and its worker went home.
    assert set(claimed) | set(await worker(0)) == {f"run_{number}" for number in range(60)}


async def test_deadlock_ends_with_both_units_done(replicas: Replicas) -> None:
    for name in ("a", "b"):
        await add_thread(replicas[0], name)
    both_hold_one = asyncio.Barrier(2)
    attempts = []

    async def unit(tx: Transaction, first: str, second: str) -> None:
        attempts.append(first)
        await tx.threads.get(TENANT, first, lock=True)
        if attempts.count(first) == 1 and len(attempts) < 3:
            await both_hold_one.wait()
        await tx.threads.get(TENANT, second, lock=True)

    await asyncio.gather(
        replicas[0].write(lambda tx: unit(tx, "a", "b")), replicas[1].write(lambda tx: unit(tx, "b", "a"))
    )
    assert len(attempts) > 2
    assert sum(replica.stats.conflicts for replica in replicas) == len(attempts) - 2


@pytest.mark.parametrize("meetings", [2, 1_000])
async def test_unit_that_asks_for_it_is_run_again_but_not_for_ever(replica: PostgresStore, meetings: int) -> None:
    attempts = 0

    async def unit(tx: Transaction) -> str:
        nonlocal attempts
        attempts += 1
        await tx.threads.insert(TENANT, thread())
        if attempts <= meetings:
            raise RunAgain(LookupError())
        return "done"

    if meetings == 2:
        assert await replica.write(unit) == "done"
        assert attempts == 3
    else:
        with pytest.raises(LookupError):
            await replica.write(unit)
        assert attempts < 10
        assert await ids(replica) == []


async def test_unit_whose_connection_is_cut_is_run_again(replica: PostgresStore, empty_database: str) -> None:
    attempts = 0

    async def unit(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        await tx.threads.insert(TENANT, thread())
        await tx.threads.get(TENANT, "thread_1")
        if attempts == 1:
            execute(empty_database, CUT_OFF + "state = 'idle in transaction'")
        await tx.threads.touch(TENANT, "thread_1", START)

    await replica.write(unit)
    assert attempts == 2
    assert await ids(replica) == ["thread_1"]


async def test_unit_whose_connection_is_cut_during_the_commit_is_not_run_again(
    replica: PostgresStore, empty_database: str
) -> None:
    execute(empty_database, SLOW_COMMITS)
    attempts = 0

    async def unit(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        await tx.secrets.obtain("key")

    try:
        writing = asyncio.create_task(replica.write(unit))
        await until(empty_database, f"SELECT true FROM pg_stat_activity WHERE {COMMITTING}")
        execute(empty_database, CUT_OFF + COMMITTING)
        with pytest.raises(Unavailable) as refused:
            await writing
    finally:
        execute(empty_database, "DROP FUNCTION wait CASCADE")
    assert refused.value.reason == ErrorReason.ERROR_REASON_STORE_UNAVAILABLE
    assert refused.value.retry_after
    assert attempts == 1


async def test_unit_that_goes_on_after_a_failed_statement_is_a_fault_and_stores_nothing(replica: PostgresStore) -> None:
    await add_thread(replica, "taken")
    await add_run(replica, run("taken", thread_id="taken"))

    async def unit(tx: Transaction) -> None:
        await tx.threads.insert(TENANT, thread("new"))
        with pytest.raises(asyncpg.UniqueViolationError):
            await tx.runs.insert(TENANT, run("taken", thread_id="new"), lease=None)

    with pytest.raises(RuntimeError, match="undone"):
        await replica.write(unit)
    assert await ids(replica) == ["taken"]


async def test_unit_that_only_reads_cannot_write(replica: PostgresStore) -> None:
    with pytest.raises(Unavailable):
        await replica.read(lambda tx: tx.threads.insert(TENANT, thread()))
    assert await ids(replica) == []


async def test_more_callers_than_connections_wait_for_one(empty_database: str) -> None:
    store = PostgresStore(url=empty_database, pool=2)
    await store.open()
    await add_thread(store, "thread_1")
    await asyncio.gather(*(add_messages(store, "thread_1", f"m{number}") for number in range(100)))
    assert len(await read_texts(store, "thread_1")) == 100
    await store.close()


async def test_store_with_too_much_to_do_refuses_and_goes_on(
    replica: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_thread(replica, "thread_1")
    monkeypatch.setattr("famulus_server.store.postgres._MAX_WAITING", 10)
    writes = (add_messages(replica, "thread_1", f"m{number}") for number in range(30))
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, Unavailable)]
    assert {one.reason for one in refused} == {ErrorReason.ERROR_REASON_SERVER_OVERLOADED}
    assert len(await read_texts(replica, "thread_1")) == 30 - len(refused) == 10


async def test_close_finishes_what_was_begun_and_takes_no_more(empty_database: str, replica: PostgresStore) -> None:
    store = PostgresStore(url=empty_database, pool=2)
    with pytest.raises(Unavailable):
        await store.ping()
    await store.open()
    await add_thread(store, "thread_1")
    begun = [asyncio.create_task(add_messages(store, "thread_1", f"m{number}")) for number in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*begun)
    with pytest.raises(Unavailable):
        await store.ping()
    assert len(await read_texts(replica, "thread_1")) == 50


async def test_unit_sees_what_it_waited_for(replicas: Replicas, empty_database: str) -> None:
    """PostgreSQL shows a statement that waited for a row the new row, and nothing else that is new."""
    await add_thread(replicas[0], "thread_1")

    async def start_run(tx: Transaction) -> None:
        await tx.threads.touch(TENANT, "thread_1", START)
        locked.set()
        await somebody_waits(empty_database)
        await tx.runs.insert(TENANT, run(), lease=None)

    async def look(tx: Transaction) -> str:
        return (await tx.threads.get(TENANT, "thread_1", lock=True)).active_run_id

    locked = asyncio.Event()
    starting = asyncio.create_task(replicas[0].write(start_run))
    await locked.wait()
    assert await replicas[1].write(look) == "run_1"
    await starting


async def somebody_waits(url: str) -> None:
    """Returns once somebody waits for a lock."""
    await until(
        url, "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )


async def outcomes_of(*units: tuple[PostgresStore, Callable[[Transaction], Awaitable[object]]]) -> list[object]:
    return await asyncio.gather(*(store.write(unit) for store, unit in units), return_exceptions=True)


async def test_concurrent_changes_of_an_assistant_all_count(replicas: Replicas) -> None:
    await replicas[0].write(lambda tx: tx.assistants.insert(TENANT, assistant()))

    async def unit(tx: Transaction) -> None:
        await tx.assistants.replace(TENANT, await tx.assistants.get(TENANT, "asst_1", lock=True))

    assert set(await outcomes_of(*((replicas[number % 2], unit) for number in range(20)))) == {None}
    assert (await replicas[0].read(lambda tx: tx.assistants.get(TENANT, "asst_1"))).version == 21


async def test_thread_and_its_fork_deleted_at_once_leave_no_message(replicas: Replicas, empty_database: str) -> None:
    for number in range(15):
        origin, fork = f"thread_{number}a", f"thread_{number}b"
        await add_thread(replicas[0], origin, f"m{number}a")
        await replicas[0].write(lambda tx: tx.threads.fork(TENANT, origin, 1, thread(fork)))  # noqa: B023
        await add_messages(replicas[0], fork, f"m{number}b")
        outcomes = await outcomes_of(
            (replicas[0], lambda tx: tx.threads.bury(TENANT, origin, START)),  # noqa: B023
            (replicas[1], lambda tx: tx.threads.bury(TENANT, fork, START)),  # noqa: B023
        )
        # Whoever came second took the shared message.
        assert outcomes in ([0, 2], [1, 1])
    assert await query(empty_database, "SELECT count(*) FROM messages") == 0


async def test_shared_message_deleted_by_both_threads_at_once_is_not_kept(
    replicas: Replicas, empty_database: str
) -> None:
    for number in range(15):
        origin, fork = f"thread_{number}a", f"thread_{number}b"
        await add_thread(replicas[0], origin, f"m{number}")
        await replicas[0].write(lambda tx: tx.threads.fork(TENANT, origin, 1, thread(fork)))  # noqa: B023
        outcomes = await outcomes_of(
            (replicas[0], lambda tx: tx.messages.delete(TENANT, origin, f"m{number}")),  # noqa: B023
            (replicas[1], lambda tx: tx.messages.delete(TENANT, fork, f"m{number}")),  # noqa: B023
        )
        assert outcomes == [None, None]
    assert await query(empty_database, "SELECT count(*) FROM messages") == 0


async def test_fork_at_the_moment_of_a_change_has_the_message_before_or_after_it(replicas: Replicas) -> None:
    for number in range(15):
        origin, fork = f"thread_{number}a", f"thread_{number}b"
        await add_thread(replicas[0], origin, f"m{number}")
        outcomes = await outcomes_of(
            (replicas[0], lambda tx: tx.messages.delete(TENANT, origin, f"m{number}")),  # noqa: B023
            (replicas[1], lambda tx: tx.threads.fork(TENANT, origin, 1, thread(fork))),  # noqa: B023
        )
        assert outcomes == [None, None]
        assert await read_texts(replicas[0], origin) == []
        # Deleted before the fork for both, or after it for the origin only.
        assert await read_texts(replicas[0], fork) in ([], [f"m{number}"])


async def test_step_of_a_late_worker_is_no_orphan(replicas: Replicas, empty_database: str) -> None:
    for number in range(15):
        name, run_id = f"thread_{number}", f"run_{number}"
        await add_thread(replicas[0], name)
        await add_run(replicas[0], run(run_id, thread_id=name))
        outcomes = await outcomes_of(
            (replicas[1], lambda tx: tx.steps.put(TENANT, step(run_id=run_id))),  # noqa: B023
            (replicas[0], lambda tx: tx.threads.bury(TENANT, name, START)),  # noqa: B023
        )
        assert outcomes[0] is None or isinstance(outcomes[0], LeaseLost)
        with pytest.raises(NotFound):
            await replicas[0].read(lambda tx: tx.threads.get(TENANT, name))  # noqa: B023
    assert await query(empty_database, "SELECT count(*) FROM run_steps") == 0


async def test_activity_that_moves_nothing_still_holds_the_thread(replicas: Replicas, empty_database: str) -> None:
    await add_thread(replicas[0], "thread_1")
    order = []

    async def touch(tx: Transaction) -> None:
        await tx.threads.touch(TENANT, "thread_1", START)
        touched.set()
        await somebody_waits(empty_database)
        order.append("touched")

    async def look(tx: Transaction) -> None:
        await tx.threads.get(TENANT, "thread_1", lock=True)
        order.append("looked")

    touched = asyncio.Event()
    touching = asyncio.create_task(replicas[0].write(touch))
    await touched.wait()
    await replicas[1].write(look)
    await touching
    assert order == ["touched", "looked"]
