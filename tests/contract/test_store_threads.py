"""Threads, in any store."""

from datetime import timedelta

import pytest

from contract.samples import (
    ODD_IDS,
    OTHER,
    START,
    TENANT,
    add_run,
    add_thread,
    message,
    read_texts,
    run,
    step,
    thread,
)
from famulus.v1.run_pb2 import RunState
from famulus.v1.thread_pb2 import Thread
from famulus_server.errors import LeaseLost, NotFound
from famulus_server.ports import Cursor, RunFilter, Store, ThreadFilter, Turn


def at(seconds: float) -> "timedelta":
    return timedelta(seconds=seconds)


async def insert(store: Store, made: Thread) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, made))


async def ids(
    store: Store, which: ThreadFilter | None = None, *, after: Cursor | None = None, limit: int = 100
) -> list[str]:
    found = await store.read(lambda tx: tx.threads.page(TENANT, which or ThreadFilter(), after=after, limit=limit))
    return [made.id for made in found]


async def test_new_thread_reads_as_stored(store: Store) -> None:
    made = thread(user="ann", metadata={"k": "v"})
    await store.write(lambda tx: tx.threads.insert(TENANT, made))
    read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert read == made
    assert read.etag
    assert (read.last_message_sequence, read.active_run_id) == (0, "")


async def test_read_fills_in_the_active_run_and_the_last_sequence(store: Store) -> None:
    await add_thread(store, "thread_1", "a", "b")
    made = run()
    await add_run(store, made)
    for read in (
        await store.read(lambda tx: tx.threads.get(TENANT, "thread_1")),
        (await store.read(lambda tx: tx.threads.page(TENANT, ThreadFilter(), after=None, limit=1)))[0],
    ):
        assert (read.last_message_sequence, read.active_run_id) == (2, "run_1")
    made.state = RunState.RUN_STATE_CANCELLED
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=0))
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))).active_run_id == ""


async def test_replace_moves_the_etag_on_and_messages_do_not(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    before = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert before.etag == "1"
    changed = Thread()
    changed.CopyFrom(before)
    changed.title = "new"
    await store.write(lambda tx: tx.threads.replace(TENANT, changed))
    after = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert after == changed
    assert (after.title, after.etag) == ("new", "2")


async def test_replace_of_an_unknown_thread_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.replace(TENANT, thread()))


async def test_list_is_by_latest_activity_and_a_cursor_continues_it(store: Store) -> None:
    for number, seconds in enumerate([0, 5, 5, 9]):
        await insert(store, thread(f"thread_{number}", seconds=seconds))
    await store.write(lambda tx: tx.threads.touch(TENANT, "thread_0", START + at(20)))
    assert await ids(store, limit=2) == ["thread_0", "thread_3"]
    place = Cursor(int((START + at(5)).timestamp()) * 1_000_000, "thread_2")
    assert await ids(store, after=place) == ["thread_1"]


async def test_touch_never_moves_activity_back(store: Store) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(seconds=10)))
    await store.write(lambda tx: tx.threads.touch(TENANT, "thread_1", START + at(5)))
    read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert read.last_activity_time.ToMicroseconds() == int((START + at(10)).timestamp()) * 1_000_000
    await store.write(lambda tx: tx.threads.touch(TENANT, "thread_1", START + at(10.000001)))
    read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert read.last_activity_time.ToMicroseconds() == int((START + at(10)).timestamp()) * 1_000_000 + 1
    assert read.etag == "1"


async def test_filters_by_user_metadata_and_activity_all_hold_at_once(store: Store) -> None:
    samples = [
        thread("a", seconds=1, user="ann", metadata={"env": "prod", "x": "1"}),
        thread("b", seconds=2, user="ann", metadata={"env": "test", "x": "1"}),
        thread("c", seconds=3, user="bob", metadata={"env": "prod"}),
        thread("d", seconds=4),
    ]
    for made in samples:
        await insert(store, made)
    assert await ids(store, ThreadFilter(user_id="ann")) == ["b", "a"]
    assert await ids(store, ThreadFilter(metadata={"env": "prod"})) == ["c", "a"]
    assert await ids(store, ThreadFilter(metadata={"env": "prod", "x": "1"})) == ["a"]
    assert await ids(store, ThreadFilter(metadata={"env": "1", "x": "prod"})) == []
    assert await ids(store, ThreadFilter(user_id="bob", metadata={"env": "prod"})) == ["c"]
    assert await ids(store, ThreadFilter(active_after=START + at(2))) == ["d", "c", "b"]
    assert await ids(store, ThreadFilter(active_before=START + at(2))) == ["a"]
    span = ThreadFilter(user_id="ann", active_after=START + at(1), active_before=START + at(3))
    assert await ids(store, span) == ["b", "a"]
    micros = int(START.timestamp()) * 1_000_000
    assert await ids(store, ThreadFilter(active_before=START + at(4)), after=Cursor(micros + 3_000_000, "c")) == [
        "b",
        "a",
    ]
    assert await ids(store, ThreadFilter(metadata={"env": "prod"}), after=Cursor(micros + 3_000_000, "c")) == ["a"]


async def test_replace_makes_threads_findable_by_the_new_metadata_only(store: Store) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(metadata={"a": "1", "b": "2"})))
    await store.write(lambda tx: tx.threads.replace(TENANT, thread(metadata={"b": "3"})))
    assert await ids(store, ThreadFilter(metadata={"b": "3"})) == ["thread_1"]
    assert await ids(store, ThreadFilter(metadata={"a": "1"})) == []
    assert await ids(store, ThreadFilter(metadata={"b": "2"})) == []


@pytest.mark.parametrize("odd", [*ODD_IDS[1:], "\\", "[]", '["a", 1]', "\U0001f600" * 512])
async def test_odd_metadata_and_users_are_found_exactly(store: Store, odd: str) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(user=odd, metadata={odd: odd})))
    await store.write(lambda tx: tx.threads.insert(TENANT, thread("other", user="o", metadata={"o": "o"})))
    assert await ids(store, ThreadFilter(metadata={odd: odd})) == ["thread_1"]
    assert await ids(store, ThreadFilter(user_id=odd)) == ["thread_1"]


async def test_buried_thread_leaves_nothing_to_read(store: Store) -> None:
    await add_thread(store, "thread_1", "a", "b")
    await add_thread(store, "thread_2", "c")
    await add_run(store, run(state=RunState.RUN_STATE_IN_PROGRESS, attempt=1))
    await store.write(lambda tx: tx.steps.put(TENANT, step()))
    await store.write(lambda tx: tx.turns.put(TENANT, "run_1", Turn(number=1, seen_sequence=2, items=[])))
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))

    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.messages.get(TENANT, "thread_1", "a"))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.steps.get(TENANT, "run_1", "step_1"))
    assert await ids(store) == ["thread_2"]
    assert await read_texts(store, "thread_1") == []
    assert await read_texts(store, "thread_2") == ["c"]
    assert await store.read(lambda tx: tx.runs.page(TENANT, RunFilter(), after=None, limit=9)) == []
    assert await store.read(lambda tx: tx.steps.page(TENANT, "run_1")) == []
    assert await store.read(lambda tx: tx.turns.all(TENANT, "run_1")) == []


async def test_buried_thread_is_found_by_no_filter(store: Store) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(user="ann", metadata={"k": "v"})))
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    assert await ids(store, ThreadFilter(user_id="ann")) == []
    assert await ids(store, ThreadFilter(metadata={"k": "v"})) == []


async def test_late_worker_writes_nothing_after_a_burial(store: Store) -> None:
    await add_thread(store, "thread_1")
    late = run(state=RunState.RUN_STATE_IN_PROGRESS, attempt=1)
    await add_run(store, late)
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))

    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.runs.replace(TENANT, late, attempt=1))
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.steps.put(TENANT, step()))
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.turns.put(TENANT, "run_1", Turn(number=1, seen_sequence=0, items=[])))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", [message("late")]))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.replace(TENANT, thread()))
    await store.write(lambda tx: tx.threads.touch(TENANT, "thread_1", START + at(5)))
    assert await ids(store) == []


async def test_thread_is_buried_once(store: Store) -> None:
    await add_thread(store, "thread_1")
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))


async def test_another_tenants_thread_is_as_good_as_none(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.threads.get(OTHER, "thread_1"))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.replace(OTHER, thread()))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.bury(OTHER, "thread_1", START))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.fork(OTHER, "thread_1", 1, thread("fork")))
    await store.write(lambda tx: tx.threads.touch(OTHER, "thread_1", START + at(9)))
    assert await store.read(lambda tx: tx.threads.page(OTHER, ThreadFilter(), after=None, limit=9)) == []
    read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert (read.etag, read.last_activity_time.ToDatetime(START.tzinfo)) == ("1", START)
    assert await read_texts(store, "thread_1") == ["a"]


async def test_two_tenants_may_use_the_same_ids(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    await add_thread(store, "thread_1", "a", "b", tenant=OTHER)
    await store.write(lambda tx: tx.threads.bury(OTHER, "thread_1", START))
    assert await read_texts(store, "thread_1") == ["a"]


async def test_runs_of_a_buried_thread_are_told_once_to_whoever_cleans_up(store: Store) -> None:
    for number in range(3):
        await add_thread(store, f"thread_{number}")
        await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}"))
    for number in range(2):
        await store.write(lambda tx, n=number: tx.threads.bury(TENANT, f"thread_{n}", START + at(n)))  # type: ignore[misc]
    assert await store.write(lambda tx: tx.runs.take_deleted(START - at(1), limit=9)) == []
    assert await store.write(lambda tx: tx.runs.take_deleted(START + at(9), limit=1)) == [(TENANT, "thread_0", "run_0")]
    assert await store.write(lambda tx: tx.runs.take_deleted(START + at(9), limit=9)) == [(TENANT, "thread_1", "run_1")]
    assert await store.write(lambda tx: tx.runs.take_deleted(START + at(9), limit=9)) == []
