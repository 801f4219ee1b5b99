"""Units of work, in any store: atomic, isolated from their neighbours, visible when acknowledged."""

import asyncio

import pytest

from contract.samples import TENANT, add_messages, add_thread, assistant, message, read_texts, run, thread
from famulus_server.errors import NotFound
from famulus_server.ports import RequestKey, Store, ThreadFilter, Transaction


class OddError(Exception):
    """What a unit may raise."""


async def test_unit_returns_its_value(store: Store) -> None:
    async def unit(tx: Transaction) -> str:
        await tx.threads.insert(TENANT, thread())
        return (await tx.threads.get(TENANT, "thread_1")).id

    assert await store.write(unit) == "thread_1"


async def test_what_a_unit_raises_undoes_it_and_reaches_the_caller(store: Store) -> None:
    async def unit(tx: Transaction) -> None:
        await tx.threads.insert(TENANT, thread())
        await tx.messages.append(TENANT, "thread_1", [message("a")])
        raise OddError

    with pytest.raises(OddError):
        await store.write(unit)
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    await add_thread(store, "thread_1", "b")
    assert await read_texts(store, "thread_1") == ["b"]


async def test_failing_unit_does_not_undo_its_neighbours(store: Store) -> None:
    async def unit(tx: Transaction, number: int) -> int:
        await tx.assistants.insert(TENANT, assistant(f"asst_{number}"))
        if number % 3 == 0:
            raise OddError
        if number % 3 == 1:
            await tx.assistants.get(TENANT, "none")
        return number

    async def write(number: int) -> int:
        return await store.write(lambda tx: unit(tx, number))

    outcomes = await asyncio.gather(*(write(number) for number in range(30)), return_exceptions=True)
    kept = {number for number in range(30) if number % 3 == 2}
    assert {one for one in outcomes if isinstance(one, int)} == kept
    assert sum(isinstance(one, OddError) for one in outcomes) == 10
    assert sum(isinstance(one, NotFound) for one in outcomes) == 10
    stored = await store.read(lambda tx: tx.assistants.page(TENANT, after=None, limit=100))
    assert {one.id for one in stored} == {f"asst_{number}" for number in kept}


async def test_acknowledged_write_is_seen_by_every_later_read(store: Store) -> None:
    await add_thread(store, "thread_1")

    async def write_and_read(number: int) -> None:
        await add_messages(store, "thread_1", f"m{number}")
        got = await store.read(lambda tx: tx.messages.get(TENANT, "thread_1", f"m{number}"))
        assert got.id == f"m{number}"

    await asyncio.gather(*(write_and_read(number) for number in range(50)))


async def test_read_sees_one_moment(store: Store) -> None:
    await add_thread(store, "thread_1")

    async def compare(tx: Transaction) -> tuple[int, int]:
        last = (await tx.threads.get(TENANT, "thread_1")).last_message_sequence
        return last, len(await tx.messages.page(TENANT, "thread_1", limit=1_000))

    async def append(number: int) -> None:
        await add_messages(store, "thread_1", f"m{number}")

    reads, _ = await asyncio.gather(
        asyncio.gather(*(store.read(compare) for _ in range(50))),
        asyncio.gather(*(append(number) for number in range(50))),
    )
    assert all(last == seen for last, seen in reads)


async def test_caller_that_is_cancelled_changes_nothing_for_its_neighbours(store: Store) -> None:
    impatient = [asyncio.create_task(store.write(lambda tx: tx.secrets.obtain("x"))) for _ in range(10)]
    patient = [asyncio.create_task(add_thread(store, f"thread_{number}")) for number in range(10)]
    await asyncio.sleep(0)
    for task in impatient:
        task.cancel()
    await asyncio.gather(*patient)
    assert all(
        isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*impatient, return_exceptions=True)
    )
    assert len(await store.read(lambda tx: tx.threads.page(TENANT, ThreadFilter(), after=None, limit=100))) == 10


async def test_equal_request_at_the_same_moment_finds_what_the_other_made_and_not_what_it_made_impossible(
    store: Store,
) -> None:
    await add_thread(store, "thread_1")
    key = RequestKey("CreateRun", "request", b"fingerprint")

    async def unit(tx: Transaction, number: int) -> str:
        known = await tx.requests.find(TENANT, key)
        if known is not None:
            return known
        await tx.threads.get(TENANT, "thread_1", lock=True)
        # A thread has one active run: the second would be refused.
        await tx.runs.insert(TENANT, run(f"run_{number}"), lease=None)
        await tx.requests.remember(TENANT, key, f"run_{number}")
        return f"run_{number}"

    async def create(number: int) -> str:
        return await store.write(lambda tx: unit(tx, number))

    made = await asyncio.gather(*(create(number) for number in range(20)))
    assert len(set(made)) == 1
