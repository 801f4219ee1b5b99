"""Messages of one thread, in any store. What forks share is in test_store_forks."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from contract.samples import (
    ODD_IDS,
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
from famulus_server.errors import NotFound
from famulus_server.ports import Store, Transaction


async def page(store: Store, *, tenant: str = TENANT, **bounds: Any) -> list[str]:
    return texts(await store.read(lambda tx: tx.messages.page(tenant, "thread_1", **{"limit": 100, **bounds})))


async def newest(store: Store, *, tenant: str = TENANT, **bounds: Any) -> tuple[int, list[str]]:
    found = await store.read(lambda tx: tx.messages.newest(tenant, "thread_1", **{"limit": 100, **bounds}))
    return found[0], texts(found[1])


async def revision(store: Store) -> int:
    return (await newest(store))[0]


async def test_append_gives_sequence_etag_and_thread_in_place(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    added = [message("b"), message("c")]
    await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", added))
    assert [(made.sequence, made.thread_id, made.etag) for made in added] == [
        (2, "thread_1", "1"),
        (3, "thread_1", "1"),
    ]
    assert await store.read(lambda tx: tx.messages.get(TENANT, "thread_1", "c")) == added[1]


async def test_first_messages_come_with_their_thread(store: Store) -> None:
    first = [message("a"), message("b")]
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(), first))
    assert [(made.sequence, made.thread_id, made.etag) for made in first] == [
        (1, "thread_1", "1"),
        (2, "thread_1", "1"),
    ]
    await add_messages(store, "thread_1", "c")
    assert await read_texts(store, "thread_1") == ["a", "b", "c"]


async def test_append_notes_activity_and_never_moves_it_back(store: Store) -> None:
    await store.write(lambda tx: tx.threads.insert(TENANT, thread(seconds=10)))

    async def append(text: str, seconds: int | None) -> int:
        now = None if seconds is None else START + timedelta(seconds=seconds)
        await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", [message(text)], now=now))
        read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
        return read.last_activity_time.seconds - int(START.timestamp())

    assert [await append("a", None), await append("b", 5), await append("c", 15)] == [10, 10, 15]


async def test_append_to_an_unknown_thread_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await add_messages(store, "thread_1", "a")


async def test_concurrent_appends_get_consecutive_sequences(store: Store) -> None:
    await add_thread(store, "thread_1")

    async def append(number: int) -> list[int]:
        added = [message(f"{number}-{part}") for part in range(3)]
        await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", added))
        return [made.sequence for made in added]

    batches = await asyncio.gather(*(append(number) for number in range(40)))
    assert sorted(sequence for batch in batches for sequence in batch) == list(range(1, 121))
    assert all(batch == list(range(batch[0], batch[0] + 3)) for batch in batches)
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))).last_message_sequence == 120


async def test_page_shows_what_lies_between_its_bounds(store: Store) -> None:
    await add_thread(store, "thread_1", *"abcdef")
    assert await page(store) == list("abcdef")
    assert await page(store, limit=2) == ["a", "b"]
    assert await page(store, limit=2, after_sequence=2) == ["c", "d"]
    assert await page(store, limit=2, descending=True) == ["f", "e"]
    assert await page(store, limit=2, descending=True, before_sequence=5) == ["d", "c"]
    assert await page(store, after_sequence=2, before_sequence=5) == ["c", "d"]
    assert await page(store, after_sequence=2**63 - 1) == []
    assert await page(store, after_sequence=-(2**63), before_sequence=2**63 - 1) == list("abcdef")
    assert await page(store, before_sequence=-(2**63)) == []


async def test_page_of_a_thread_that_does_not_exist_is_empty(store: Store) -> None:
    assert await page(store) == []
    assert await page(store, run_id="run_1") == []


async def test_page_shows_the_messages_of_one_run(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    added = [message("b", run_id="run_1"), message("c", run_id="run_2"), message("d", run_id="run_1")]
    await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", added))
    assert await page(store, run_id="run_1") == ["b", "d"]
    assert await page(store, run_id="run_1", limit=1) == ["b"]
    assert await page(store, run_id="run_1", limit=1, descending=True) == ["d"]
    assert await page(store, run_id="run_1", after_sequence=2) == ["d"]
    assert await page(store, run_id="run_1", before_sequence=4, descending=True) == ["b"]
    assert await page(store, run_id="run_3") == []


async def test_replace_moves_the_etag_on_and_keeps_the_sequence(store: Store) -> None:
    await add_thread(store, "thread_1", "a", "b")
    changed = message("a", text="A")
    await store.write(lambda tx: tx.messages.replace(TENANT, "thread_1", changed))
    assert (changed.sequence, changed.etag, changed.thread_id) == (1, "2", "thread_1")
    assert await store.read(lambda tx: tx.messages.get(TENANT, "thread_1", "a")) == changed
    assert await page(store) == ["A", "b"]


async def test_deleted_message_is_gone_and_its_sequence_stays_empty(store: Store) -> None:
    await add_thread(store, "thread_1", "a", "b")
    await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "b"))
    await add_messages(store, "thread_1", "c")
    found = await store.read(lambda tx: tx.messages.page(TENANT, "thread_1", limit=9))
    assert [(made.id, made.sequence) for made in found] == [("a", 1), ("c", 3)]
    for attempt in (
        store.read(lambda tx: tx.messages.get(TENANT, "thread_1", "b")),
        store.write(lambda tx: tx.messages.replace(TENANT, "thread_1", message("b"))),
        store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "b")),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_newest_messages_come_with_the_revision(store: Store) -> None:
    await add_thread(store, "thread_1", *"abcd")
    assert await newest(store) == (0, ["d", "c", "b", "a"])
    assert await newest(store, limit=2) == (0, ["d", "c"])
    assert await newest(store, after_sequence=2) == (0, ["d", "c"])
    assert await newest(store, after_sequence=4) == (0, [])
    assert await newest(store, tenant=OTHER) == (0, [])


async def test_revision_counts_what_is_changed_and_removed_and_nothing_else(store: Store) -> None:
    await add_thread(store, "thread_1", *"abc")
    await store.write(lambda tx: tx.threads.replace(TENANT, thread()))
    await store.write(lambda tx: tx.threads.touch(TENANT, "thread_1", START))
    await store.read(lambda tx: tx.messages.get(TENANT, "thread_1", "a"))
    assert await revision(store) == 0
    await store.write(lambda tx: tx.messages.replace(TENANT, "thread_1", message("a", text="A")))
    assert await newest(store) == (1, ["c", "b", "A"])
    await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "c"))
    assert await newest(store) == (2, ["b", "A"])
    await add_messages(store, "thread_1", "d")
    assert await newest(store) == (2, ["d", "b", "A"])


async def test_revision_stands_where_a_change_is_refused_or_undone(store: Store) -> None:
    async def undo(tx: Transaction) -> None:
        await tx.messages.delete(TENANT, "thread_1", "a")
        raise NotFound("thread", "another")

    await add_thread(store, "thread_1", "a")
    for attempt in (
        store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "b")),
        store.write(lambda tx: tx.messages.replace(OTHER, "thread_1", message("a"))),
        store.write(undo),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await newest(store) == (0, ["a"])


async def test_revision_counts_each_of_many_changes_at_once(store: Store) -> None:
    names = [f"m{number}" for number in range(20)]
    await add_thread(store, "thread_1", *names)

    async def change(number: int) -> None:
        if number % 2:
            await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", names[number]))
        else:
            await store.write(lambda tx: tx.messages.replace(TENANT, "thread_1", message(names[number])))

    await asyncio.gather(*map(change, range(20)))
    assert await revision(store) == 20


async def test_thread_without_messages_has_a_revision(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "a"))
    assert await newest(store) == (1, [])


async def test_message_of_another_thread_is_not_found(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    await add_thread(store, "thread_2", "b")
    for attempt in (
        store.read(lambda tx: tx.messages.get(TENANT, "thread_2", "a")),
        store.write(lambda tx: tx.messages.replace(TENANT, "thread_2", message("a", text="stolen"))),
        store.write(lambda tx: tx.messages.delete(TENANT, "thread_2", "a")),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await page(store) == ["a"]


async def test_another_tenants_message_is_as_good_as_none(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    added = [message("b", run_id="run_1")]
    await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", added))
    for attempt in (
        store.read(lambda tx: tx.messages.get(OTHER, "thread_1", "a")),
        store.write(lambda tx: tx.messages.append(OTHER, "thread_1", [message("x")])),
        store.write(lambda tx: tx.messages.replace(OTHER, "thread_1", message("a", text="stolen"))),
        store.write(lambda tx: tx.messages.delete(OTHER, "thread_1", "a")),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await page(store, tenant=OTHER) == []
    assert await page(store, tenant=OTHER, run_id="run_1") == []
    assert await read_texts(store, "thread_1") == ["a", "b"]


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_odd_ids_are_only_ids(store: Store, odd: str) -> None:
    await add_thread(store, "thread_1", "a")
    for attempt in (
        store.read(lambda tx: tx.messages.get(TENANT, "thread_1", odd)),
        store.read(lambda tx: tx.messages.get(TENANT, odd, "a")),
        store.write(lambda tx: tx.messages.append(TENANT, odd, [message("x")])),
        store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", odd)),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await page(store) == ["a"]
