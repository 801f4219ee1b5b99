"""Forks share messages without copies; each thread changes its own view only. In any store."""

import pytest

from contract.samples import (
    OTHER,
    START,
    TENANT,
    add_messages,
    add_thread,
    message,
    read_texts,
    texts,
    thread,
)
from famulus.v1.message_pb2 import Message
from famulus_server.errors import NotFound
from famulus_server.ports import Store, ThreadFilter


async def fork(store: Store, origin: str, upto: int, name: str) -> None:
    await store.write(lambda tx: tx.threads.fork(TENANT, origin, upto, thread(name)))


async def bury(store: Store, thread_id: str) -> None:
    await store.write(lambda tx: tx.threads.bury(TENANT, thread_id, START))


async def delete(store: Store, thread_id: str, message_id: str) -> None:
    await store.write(lambda tx: tx.messages.delete(TENANT, thread_id, message_id))


async def change(store: Store, thread_id: str, message_id: str, text: str) -> str:
    changed = message(message_id, text=text)
    await store.write(lambda tx: tx.messages.replace(TENANT, thread_id, changed))
    return changed.etag


async def etag(store: Store, thread_id: str, message_id: str) -> str:
    return (await store.read(lambda tx: tx.messages.get(TENANT, thread_id, message_id))).etag


async def newest(store: Store, thread_id: str) -> tuple[int, list[str]]:
    revision, found = await store.read(lambda tx: tx.messages.newest(TENANT, thread_id, limit=100))
    return revision, texts(found)


async def find(store: Store, which: ThreadFilter) -> list[str]:
    return [made.id for made in await store.read(lambda tx: tx.threads.page(TENANT, which, after=None, limit=9))]


async def both_reads(store: Store, thread_id: str, message_id: str) -> list[Message]:
    got = await store.read(lambda tx: tx.messages.get(TENANT, thread_id, message_id))
    return [got, *await store.read(lambda tx: tx.messages.page(TENANT, thread_id, limit=1))]


async def test_fork_sees_its_origin_up_to_the_point_then_its_own(store: Store) -> None:
    await add_thread(store, "origin", *"abc")
    await fork(store, "origin", 2, "fork")
    await add_messages(store, "origin", "d")
    await add_messages(store, "fork", "x", "y")
    assert await read_texts(store, "fork") == ["a", "b", "x", "y"]
    assert await read_texts(store, "origin") == ["a", "b", "c", "d"]


async def test_fork_is_a_thread_like_any_other(store: Store) -> None:
    await add_thread(store, "origin", *"abc")
    made = thread("fork", user="ann", metadata={"k": "v"})
    await store.write(lambda tx: tx.threads.fork(TENANT, "origin", 2, made))
    read = await store.read(lambda tx: tx.threads.get(TENANT, "fork"))
    assert read == made
    assert (read.etag, read.last_message_sequence) == ("1", 2)
    for which in (ThreadFilter(user_id="ann"), ThreadFilter(metadata={"k": "v"})):
        assert await find(store, which) == ["fork"]


async def test_shared_message_belongs_to_the_thread_it_is_read_from(store: Store) -> None:
    await add_thread(store, "origin", "a")
    await fork(store, "origin", 1, "fork")
    for name in ("origin", "fork"):
        assert [made.thread_id for made in await both_reads(store, name, "a")] == [name, name]


async def test_sequences_of_a_fork_go_on_where_it_split_off(store: Store) -> None:
    await add_thread(store, "origin", *"abc")
    await fork(store, "origin", 2, "fork")
    await add_messages(store, "fork", "x")
    found = await store.read(lambda tx: tx.messages.page(TENANT, "fork", limit=9))
    assert [made.sequence for made in found] == [1, 2, 3]


async def test_fork_behind_the_end_does_not_see_what_the_origin_adds_later(store: Store) -> None:
    await add_thread(store, "origin", "a")
    await fork(store, "origin", 1_000, "fork")
    await add_messages(store, "origin", "later")
    await add_messages(store, "fork", "own")
    assert await read_texts(store, "fork") == ["a", "own"]


async def test_fork_of_an_empty_thread_and_at_zero_is_empty(store: Store) -> None:
    await add_thread(store, "empty")
    await add_thread(store, "full", "a")
    await fork(store, "empty", 0, "fork_1")
    await fork(store, "full", 0, "fork_2")
    for name in ("fork_1", "fork_2"):
        await add_messages(store, name, f"in {name}")
        assert await read_texts(store, name) == [f"in {name}"]


async def test_fork_of_an_unknown_or_deleted_thread_is_not_found(store: Store) -> None:
    await add_thread(store, "origin", "a")
    await bury(store, "origin")
    for origin in ("origin", "none"):
        with pytest.raises(NotFound):
            await fork(store, origin, 1, "fork")


async def test_fork_of_a_fork_sees_all_its_ancestors(store: Store) -> None:
    await add_thread(store, "one", *"abc")
    await fork(store, "one", 2, "two")
    await add_messages(store, "two", "d", "e")
    await fork(store, "two", 3, "three")
    await add_messages(store, "three", "f")
    await fork(store, "three", 1, "four")
    await add_messages(store, "four", "g")
    assert await read_texts(store, "three") == ["a", "b", "d", "f"]
    assert await read_texts(store, "four") == ["a", "g"]
    newest = await store.read(lambda tx: tx.messages.page(TENANT, "three", limit=3, descending=True))
    assert texts(newest) == ["f", "d", "b"]
    middle = await store.read(
        lambda tx: tx.messages.page(TENANT, "three", limit=9, after_sequence=1, before_sequence=4)
    )
    assert texts(middle) == ["b", "d"]


async def test_message_behind_the_fork_is_not_found_in_it(store: Store) -> None:
    await add_thread(store, "origin", *"ab")
    await fork(store, "origin", 1, "fork")
    with pytest.raises(NotFound):
        await etag(store, "fork", "b")


async def test_messages_of_a_run_are_seen_through_a_fork(store: Store) -> None:
    await add_thread(store, "origin")
    added = [message("a", run_id="run_1"), message("b", run_id="run_1")]
    await store.write(lambda tx: tx.messages.append(TENANT, "origin", added))
    await fork(store, "origin", 1, "fork")
    found = await store.read(lambda tx: tx.messages.page(TENANT, "fork", limit=9, run_id="run_1"))
    assert texts(found) == ["a"]


@pytest.mark.parametrize(("changing", "other"), [("origin", "fork"), ("fork", "origin")])
async def test_change_of_a_shared_message_is_seen_in_one_thread_only(store: Store, changing: str, other: str) -> None:
    await add_thread(store, "origin", *"ab")
    await fork(store, "origin", 2, "fork")
    assert await change(store, changing, "a", "A") == "2"
    assert await change(store, changing, "a", "AA") == "3"
    assert await read_texts(store, changing) == ["AA", "b"]
    assert await read_texts(store, other) == ["a", "b"]
    assert (await etag(store, changing, "a"), await etag(store, other, "a")) == ("3", "1")


@pytest.mark.parametrize(("changing", "other"), [("origin", "fork"), ("fork", "origin")])
async def test_changes_count_for_the_thread_that_sees_them_only(store: Store, changing: str, other: str) -> None:
    await add_thread(store, "origin", *"abcd")
    await fork(store, "origin", 3, "fork")
    await add_messages(store, "fork", "x")
    seen = await newest(store, other)
    await change(store, changing, "a", "A")
    await delete(store, changing, "b")
    await delete(store, changing, "a")
    assert (await newest(store, changing))[0] == 3
    assert await newest(store, other) == seen
    # What nobody else sees any more is changed in the log itself.
    await delete(store, other, "b")
    await change(store, other, "a", "AA")
    assert (await newest(store, other))[0] == 2
    assert (await newest(store, changing))[0] == 3
    await bury(store, changing)
    assert (await newest(store, changing)) == (3, [])
    assert (await newest(store, other))[0] == 2
    assert (await newest(store, other))[1][-2:] == ["c", "AA"]


async def test_newest_messages_are_found_through_all_segments(store: Store) -> None:
    await add_thread(store, "one", *"abc")
    await fork(store, "one", 3, "two")
    await delete(store, "two", "c")
    await add_messages(store, "two", "d", "e")
    await fork(store, "two", 5, "three")
    await add_messages(store, "three", "f")
    assert await newest(store, "three") == (0, ["f", "e", "d", "b", "a"])
    found = await store.read(lambda tx: tx.messages.newest(TENANT, "three", limit=2, after_sequence=1))
    assert texts(found[1]) == ["f", "e"]
    found = await store.read(lambda tx: tx.messages.newest(TENANT, "three", limit=9, after_sequence=1))
    assert texts(found[1]) == ["f", "e", "d", "b"]


@pytest.mark.parametrize(("changing", "other"), [("origin", "fork"), ("fork", "origin")])
async def test_deletion_of_a_shared_message_is_seen_in_one_thread_only(store: Store, changing: str, other: str) -> None:
    await add_thread(store, "origin", *"ab")
    await fork(store, "origin", 2, "fork")
    await change(store, changing, "a", "A")
    await delete(store, changing, "a")
    with pytest.raises(NotFound):
        await etag(store, changing, "a")
    with pytest.raises(NotFound):
        await delete(store, changing, "a")
    assert await read_texts(store, changing) == ["b"]
    assert await read_texts(store, other) == ["a", "b"]
    await delete(store, other, "a")
    assert await read_texts(store, other) == ["b"]


async def test_fork_takes_the_origins_changes_along_and_then_goes_its_own_way(store: Store) -> None:
    await add_thread(store, "one", *"abc")
    await fork(store, "one", 3, "two")
    await change(store, "two", "a", "A")
    await delete(store, "two", "b")
    await fork(store, "two", 3, "three")
    await bury(store, "two")
    await change(store, "one", "c", "C")
    assert await read_texts(store, "three") == ["A", "c"]
    assert await etag(store, "three", "a") == "2"
    await fork(store, "three", 1, "four")
    await change(store, "three", "a", "AA")
    assert await read_texts(store, "four") == ["A"]
    assert await read_texts(store, "three") == ["AA", "c"]
    assert await read_texts(store, "one") == ["a", "b", "C"]


async def test_forks_of_a_deleted_thread_keep_what_they_share(store: Store) -> None:
    await add_thread(store, "origin", *"abc")
    await fork(store, "origin", 2, "fork")
    await fork(store, "fork", 1, "grandchild")
    await bury(store, "origin")
    await add_messages(store, "fork", "x")
    assert await read_texts(store, "fork") == ["a", "b", "x"]
    assert await read_texts(store, "grandchild") == ["a"]
    await bury(store, "fork")
    assert await read_texts(store, "grandchild") == ["a"]
    with pytest.raises(NotFound):
        await etag(store, "grandchild", "b")


async def test_deleted_fork_takes_nothing_of_its_origin_with_it(store: Store) -> None:
    await add_thread(store, "origin", *"abc")
    await fork(store, "origin", 3, "fork")
    await delete(store, "fork", "a")
    await bury(store, "fork")
    assert await read_texts(store, "origin") == ["a", "b", "c"]


async def test_message_deleted_in_one_thread_survives_the_others_burial_for_third_parties(store: Store) -> None:
    await add_thread(store, "one", *"ab")
    await fork(store, "one", 2, "two")
    await fork(store, "one", 2, "three")
    await delete(store, "one", "a")
    await bury(store, "two")
    assert await read_texts(store, "three") == ["a", "b"]
    assert await read_texts(store, "one") == ["b"]


async def test_fork_of_another_tenants_thread_is_not_found(store: Store) -> None:
    await add_thread(store, "origin", "a")
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.threads.fork(OTHER, "origin", 1, thread("fork")))
    assert await read_texts(store, "fork", tenant=OTHER) == []
