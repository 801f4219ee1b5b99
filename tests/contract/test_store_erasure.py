"""The end of data, in any store: threads whose time is over, erased logs, deletions of users' data."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from contract.samples import (
    OTHER,
    START,
    TENANT,
    add_messages,
    add_run,
    add_thread,
    message,
    read_texts,
    run,
    thread,
)
from famulus.v1.run_pb2 import RunState
from famulus.v1.thread_pb2 import Retention, Thread
from famulus.v1.user_data_service_pb2 import DeletionReceipt, DeletionState
from famulus_server.errors import NotFound
from famulus_server.ports import Account, Deletion, Lifetimes, Store

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def kept(
    thread_id: str,
    *,
    created: timedelta = timedelta(),
    active: timedelta = timedelta(),
    after_create: timedelta | None = None,
    after_last_activity: timedelta | None = None,
    on_completion: bool | None = None,
) -> Thread:
    """A thread that was created, and last active, so long after the start."""
    made = thread(thread_id)
    made.create_time.FromDatetime(START + created)
    made.last_activity_time.FromDatetime(START + max(created, active))
    own = Retention(on_completion=on_completion)
    if after_create is not None:
        own.after_create.FromTimedelta(after_create)
    if after_last_activity is not None:
        own.after_last_activity.FromTimedelta(after_last_activity)
    made.retention.CopyFrom(own)
    return made


async def insert(store: Store, *threads: Thread, tenant: str = TENANT) -> None:
    for made in threads:
        await store.write(lambda tx, made=made: tx.threads.insert(tenant, made))  # type: ignore[misc]


async def outlived(store: Store, after: timedelta, *, limit: int = 99, **rules: Any) -> set[str]:
    """Which threads' time is over so long after the start: by rules of their tenant, or because they say so."""
    lifetimes, now = Lifetimes(**rules), START + after
    found = await store.read(lambda tx: tx.threads.outlived(TENANT, lifetimes, now, limit=limit))
    expired = await store.read(lambda tx: tx.threads.expired(now, limit=limit))
    assert len(found) == len(set(found))
    assert len(expired) == len(set(expired))
    return {*found, *(thread_id for tenant, thread_id in expired if tenant == TENANT)}


async def bury(store: Store, thread_id: str, *, seconds: int = 0) -> int:
    return await store.write(lambda tx: tx.threads.bury(TENANT, thread_id, START + timedelta(seconds=seconds)))


async def erase(store: Store, thread_id: str) -> int:
    return await store.write(lambda tx: tx.threads.erase(TENANT, thread_id, START))


async def fork(store: Store, origin: str, upto: int, name: str, user: str = "") -> None:
    await store.write(lambda tx: tx.threads.fork(TENANT, origin, upto, thread(name, user=user)))


async def of_user(store: Store, user: str, after: str = "", limit: int = 9) -> list[tuple[str, bool]]:
    return await store.read(lambda tx: tx.threads.of_user(TENANT, user, after=after, limit=limit))


# -- threads whose time is over


async def test_threads_are_kept_for_ever_where_nobody_says_otherwise(store: Store) -> None:
    await insert(store, kept("a"))
    assert await outlived(store, 10_000 * DAY) == set()


async def test_rules_of_the_tenant_hold_for_threads_that_say_nothing(store: Store) -> None:
    await insert(store, kept("old"), kept("busy", active=2 * HOUR), kept("young", created=2 * HOUR))
    assert await outlived(store, 2 * HOUR, after_create=HOUR) == {"old", "busy"}
    assert await outlived(store, 2 * HOUR, after_last_activity=HOUR) == {"old"}
    assert await outlived(store, HOUR - timedelta(seconds=1), after_create=HOUR) == set()
    assert await outlived(store, HOUR, after_create=HOUR) == {"old", "busy"}


async def test_what_a_thread_says_comes_before_the_rules_up_to_the_maximum(store: Store) -> None:
    await insert(
        store,
        kept("long", after_create=10 * HOUR),
        kept("short", after_create=HOUR),
        kept("quiet", after_last_activity=10 * HOUR),
    )
    rules: dict[str, Any] = {"after_create": 2 * HOUR, "after_last_activity": 3 * HOUR}
    assert await outlived(store, HOUR, **rules) == {"short"}
    assert await outlived(store, 2 * HOUR, **rules) == {"short", "quiet"}
    assert await outlived(store, 3 * HOUR, after_last_activity=3 * HOUR) == {"short", "long"}
    assert await outlived(store, 10 * HOUR, after_last_activity=99 * HOUR) == {"short", "long", "quiet"}
    assert await outlived(store, 5 * HOUR, most_after_create=5 * HOUR) == {"short", "long", "quiet"}
    assert await outlived(store, 4 * HOUR, most_after_create=5 * HOUR) == {"short"}


async def test_update_of_a_thread_changes_how_long_it_is_kept(store: Store) -> None:
    await insert(store, kept("a", after_create=HOUR))
    await store.write(lambda tx: tx.threads.replace(TENANT, kept("a", after_create=3 * HOUR)))
    assert await outlived(store, 2 * HOUR) == set()
    await store.write(lambda tx: tx.threads.replace(TENANT, kept("a")))
    assert await outlived(store, 9 * HOUR) == set()


async def test_activity_moves_the_end(store: Store) -> None:
    await insert(store, kept("own", after_last_activity=HOUR), kept("default"))
    for name in ("own", "default"):
        await store.write(lambda tx, name=name: tx.threads.touch(TENANT, name, START + HOUR))  # type: ignore[misc]
    assert await outlived(store, HOUR, after_last_activity=HOUR) == set()
    assert await outlived(store, 2 * HOUR, after_last_activity=HOUR) == {"own", "default"}


@pytest.mark.parametrize("in_line", [False, True])
async def test_thread_with_an_active_run_is_not_over(store: Store, in_line: bool) -> None:
    await insert(store, kept("a", after_create=HOUR, on_completion=True))
    active = run("run_1", thread_id="a")
    await add_run(store, active)
    if in_line:
        await store.write(lambda tx: tx.runs.insert(TENANT, run("run_2", thread_id="a"), lease=None, line=1))
    assert await outlived(store, DAY, after_create=HOUR, on_completion=True, most_after_create=HOUR) == set()
    active.state = RunState.RUN_STATE_COMPLETED
    await store.write(lambda tx: tx.runs.replace(TENANT, active, attempt=0))
    if in_line:
        await store.write(lambda tx: tx.runs.promote(TENANT, "a"))
        assert await outlived(store, DAY) == set()
    else:
        assert await outlived(store, DAY) == {"a"}


async def test_thread_may_go_with_its_last_run(store: Store) -> None:
    await insert(store, kept("goes", on_completion=True), kept("stays", on_completion=False), kept("default"))
    await insert(store, kept("empty", on_completion=True), kept("empty too"))
    for name in ("goes", "stays", "default"):
        await add_run(store, run(f"run_{name}", thread_id=name, state=RunState.RUN_STATE_COMPLETED))
    assert await outlived(store, HOUR) == {"goes"}
    assert await outlived(store, HOUR, on_completion=True) == {"goes", "default"}


async def test_batches_are_bounded_and_deleted_threads_are_in_none(store: Store) -> None:
    await insert(store, *(kept(f"t{number}", after_create=HOUR) for number in range(5)))
    rules = Lifetimes(most_after_create=HOUR)
    assert len(await store.read(lambda tx: tx.threads.outlived(TENANT, rules, START + DAY, limit=2))) == 2
    assert len(await store.read(lambda tx: tx.threads.expired(START + DAY, limit=2))) == 2
    for number in range(4):
        await bury(store, f"t{number}")
    assert await outlived(store, DAY, limit=2, after_create=HOUR, after_last_activity=HOUR) == {"t4"}


async def test_threads_that_say_when_they_go_are_told_of_all_tenants(store: Store) -> None:
    await insert(store, kept("first", after_create=2 * HOUR, after_last_activity=HOUR))
    await insert(store, kept("second", after_create=2 * HOUR, after_last_activity=3 * HOUR), tenant=OTHER)
    await insert(store, kept("never"), tenant=OTHER)

    async def expired(hours: int) -> list[tuple[str, str]]:
        return sorted(await store.read(lambda tx: tx.threads.expired(START + hours * HOUR, limit=9)))

    first, second = (TENANT, "first"), (OTHER, "second")
    assert [await expired(hours) for hours in (0, 1, 2)] == [[], [first], [first, second]]


async def test_tenants_with_threads_are_told_page_by_page(store: Store) -> None:
    for tenant in ("c", "a", "b"):
        await insert(store, kept("x"), kept("y"), tenant=tenant)
    assert await store.read(lambda tx: tx.threads.tenants(after="", limit=2)) == ["a", "b"]
    assert await store.read(lambda tx: tx.threads.tenants(after="b", limit=2)) == ["c"]
    assert await store.read(lambda tx: tx.threads.tenants(after="c", limit=2)) == []


async def test_tombstones_go_in_time_but_for_those_that_forks_refer_to(store: Store) -> None:
    await add_thread(store, "one", "a")
    await add_thread(store, "two", "b")
    await fork(store, "two", 1, "fork")
    for seconds, name in enumerate(("one", "two")):
        await bury(store, name, seconds=seconds)
    assert await store.write(lambda tx: tx.threads.clear_tombstones(START - HOUR, limit=9)) == 0
    assert await store.write(lambda tx: tx.threads.clear_tombstones(START + HOUR, limit=9)) == 1
    await bury(store, "fork")
    assert await store.write(lambda tx: tx.threads.clear_tombstones(START + HOUR, limit=1)) == 1
    assert await store.write(lambda tx: tx.threads.clear_tombstones(START + HOUR, limit=9)) == 1


# -- what a deletion needs to know


async def test_outlines_tell_what_columns_have_of_a_thread_and_its_runs(store: Store) -> None:
    made = kept("thread_1", created=HOUR, active=2 * HOUR, after_create=DAY, on_completion=False)
    made.user_id = "ann"
    await insert(store, made, thread("bare"))
    for number, state in enumerate((RunState.RUN_STATE_FAILED, RunState.RUN_STATE_QUEUED)):
        await add_run(store, run(f"run_{number}", state=state))
    read = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    outline = await store.write(lambda tx: tx.threads.outline(TENANT, "thread_1"))
    for part in ("id", "user_id", "etag", "create_time", "last_activity_time", "retention", "active_run_id"):
        assert getattr(outline, part) == getattr(read, part), part
    assert outline.active_run_id == "run_1"
    assert not (await store.write(lambda tx: tx.threads.outline(TENANT, "bare"))).HasField("retention")
    runs = await store.read(lambda tx: tx.runs.outlines(TENANT, "thread_1"))
    assert sorted((one.id, one.thread_id, one.user_id, one.assistant_id, one.state) for one in runs) == [
        ("run_0", "thread_1", "ann", "asst_1", RunState.RUN_STATE_FAILED),
        ("run_1", "thread_1", "ann", "asst_1", RunState.RUN_STATE_QUEUED),
    ]
    for thread_id in ("thread_1", "bare"):
        await bury(store, thread_id)
        with pytest.raises(NotFound):
            await store.write(lambda tx, t=thread_id: tx.threads.outline(TENANT, t))  # type: ignore[misc]


# -- erased logs


async def test_erased_thread_is_gone_from_its_forks_as_well(store: Store) -> None:
    await add_thread(store, "origin", "a", "b")
    await fork(store, "origin", 2, "fork", "bob")
    await add_messages(store, "fork", "c")
    await store.write(lambda tx: tx.messages.replace(TENANT, "fork", message("a", text="a as bob sees it")))
    await fork(store, "fork", 3, "further", "carl")
    revision, _ = await store.read(lambda tx: tx.messages.newest(TENANT, "fork", limit=9))
    assert await erase(store, "origin") == 2
    assert await bury(store, "origin") == 0
    assert await read_texts(store, "fork") == ["c"]
    assert await read_texts(store, "further") == ["c"]
    later, _ = await store.read(lambda tx: tx.messages.newest(TENANT, "fork", limit=9))
    assert later > revision
    noted = await store.read(lambda tx: tx.runs.deleted_since(TENANT, START, after="", limit=9))
    assert noted == [("fork", "fork"), ("further", "further")]
    assert await store.read(lambda tx: tx.runs.deleted_since(TENANT, START + HOUR, after="", limit=9)) == []
    assert await store.read(lambda tx: tx.runs.deleted_since(OTHER, START, after="", limit=9)) == []
    # They go on as before.
    await add_messages(store, "fork", "d")
    await fork(store, "fork", 4, "last")
    assert await read_texts(store, "last") == ["c", "d"]


async def test_erasing_a_fork_leaves_what_it_shared_to_others(store: Store) -> None:
    await add_thread(store, "origin", "a", "b")
    await fork(store, "origin", 2, "fork")
    await add_messages(store, "fork", "c")
    assert await erase(store, "fork") == 1
    assert await bury(store, "fork") == 0
    assert await read_texts(store, "origin") == ["a", "b"]


async def test_another_tenants_log_is_not_erased(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    assert await store.write(lambda tx: tx.threads.erase(OTHER, "thread_1", START)) == 0
    assert await read_texts(store, "thread_1") == ["a"]


async def test_tombstone_names_its_user_while_forks_show_messages_of_it(store: Store) -> None:
    await insert(store, thread("one", user="ann"), thread("two", user="ann"), thread("three", user="ann"))
    for name in ("one", "two"):
        await add_messages(store, name, f"of {name}")
        await fork(store, name, 1, f"fork of {name}", "bob")
    for name in ("one", "two", "three"):
        await bury(store, name)
    assert await of_user(store, "ann") == [("one", True), ("two", True)]
    await bury(store, "fork of one")
    assert await of_user(store, "ann") == [("two", True)]
    await erase(store, "two")
    assert await of_user(store, "ann") == []
    assert await read_texts(store, "fork of two") == []


async def test_threads_of_a_user_are_told_in_order_and_until_a_time(store: Store) -> None:
    for number in (3, 1, 2):
        made = kept(f"t{number}", created=number * HOUR)
        made.user_id = "ann"
        await insert(store, made)
    await insert(store, thread("bobs", user="bob"), thread("nobodys"))
    assert await of_user(store, "ann", limit=2) == [("t1", False), ("t2", False)]
    assert await of_user(store, "ann", after="t2") == [("t3", False)]
    until = START + 2 * HOUR
    found = await store.read(lambda tx: tx.threads.of_user(TENANT, "ann", until=until, limit=9))
    assert found == [("t1", False), ("t2", False)]
    assert await of_user(store, "") == []


async def test_fork_made_while_a_log_is_erased_shows_nothing_of_it(store: Store) -> None:
    for number in range(15):
        origin, middle, last = (f"{name}{number}" for name in ("origin", "middle", "last"))
        await add_thread(store, origin, f"m{number}")
        await fork(store, origin, 1, middle)
        changed = message(f"m{number}", text="changed")
        await store.write(lambda tx: tx.messages.replace(TENANT, middle, changed))  # noqa: B023
        await asyncio.gather(erase(store, origin), fork(store, middle, 1, last))
        assert await read_texts(store, middle) == []
        assert await read_texts(store, last) == []
        # Neither of them has kept an override: a message in its place would be hidden by it.
        await add_messages(store, last, f"n{number}")
        assert await read_texts(store, last) == [f"n{number}"]


# -- names in records, and deletions


async def test_records_lose_a_name_in_batches_and_then_what_was_spent_does(store: Store) -> None:
    for number in range(3):
        made = run(f"run_{number}")
        made.user_id = "ann"
        made.usage.cost_nanos = 5
        await store.write(lambda tx, made=made: tx.usages.put(TENANT, made))  # type: ignore[misc]
    account = Account("ann", START)
    assert await store.write(lambda tx: tx.usages.spent(TENANT, [account])) == [15]
    assert await store.write(lambda tx: tx.usages.anonymize(OTHER, "ann", limit=9)) == 0
    assert await store.write(lambda tx: tx.usages.anonymize(TENANT, "ann", limit=2)) == 2
    assert await store.write(lambda tx: tx.usages.spent(TENANT, [account])) == [15]
    assert await store.write(lambda tx: tx.usages.anonymize(TENANT, "ann", limit=2)) == 1
    assert await store.write(lambda tx: tx.usages.spent(TENANT, [account])) == [0]
    assert await store.write(lambda tx: tx.usages.spent(TENANT, [Account("", START)])) == [15]


def deletion(receipt_id: str, user_id: str = "ann", *, seconds: int = 0) -> Deletion:
    made = DeletionReceipt(id=receipt_id, state=DeletionState.DELETION_STATE_DELETING)
    made.create_time.FromDatetime(START + timedelta(seconds=seconds))
    return Deletion(user_id, made, until=START)


async def test_one_deletion_of_a_user_is_under_way_at_a_time(store: Store) -> None:
    first = deletion("del_1")
    assert await store.write(lambda tx: tx.deletions.insert(TENANT, first))
    assert not await store.write(lambda tx: tx.deletions.insert(TENANT, deletion("del_2")))
    assert await store.write(lambda tx: tx.deletions.insert(OTHER, deletion("del_1")))
    assert await store.write(lambda tx: tx.deletions.join(TENANT, "ann", START)) == first
    assert await store.write(lambda tx: tx.deletions.join(TENANT, "bob", START)) is None
    first.user_id = ""
    await store.write(lambda tx: tx.deletions.replace(TENANT, first))
    assert await store.write(lambda tx: tx.deletions.join(TENANT, "ann", START)) is None
    assert await store.write(lambda tx: tx.deletions.join(TENANT, "", START)) is None
    assert await store.write(lambda tx: tx.deletions.insert(TENANT, deletion("del_2")))


async def test_deletion_is_about_what_was_created_until_the_last_call_that_joined_it(store: Store) -> None:
    first = deletion("del_1")
    await store.write(lambda tx: tx.deletions.insert(TENANT, first))
    await store.write(lambda tx: tx.deletions.insert(OTHER, deletion("del_1")))
    for call in (2 * HOUR, HOUR):
        joined = await store.write(lambda tx: tx.deletions.join(TENANT, "ann", START + call))  # noqa: B023
        assert joined is not None
        assert joined.until == START + 2 * HOUR
    # Whoever does its next step read it before.
    await store.write(lambda tx: tx.deletions.replace(TENANT, first))
    assert (await store.read(lambda tx: tx.deletions.get(TENANT, "del_1"))).until == START + 2 * HOUR
    assert (await store.read(lambda tx: tx.deletions.get(OTHER, "del_1"))).until == START


async def test_deletions_under_way_are_told_until_they_are_done(store: Store) -> None:
    first, second = deletion("del_1", seconds=1), deletion("del_2", "bob", seconds=0)
    await store.write(lambda tx: tx.deletions.insert(TENANT, first))
    await store.write(lambda tx: tx.deletions.insert(OTHER, second))
    later = START + HOUR
    assert await store.read(lambda tx: tx.deletions.under_way(START, limit=9)) == []
    found = await store.read(lambda tx: tx.deletions.under_way(later, limit=9))
    assert found == [(OTHER, "del_2"), (TENANT, "del_1")]
    first.user_id = ""
    await store.write(lambda tx: tx.deletions.replace(TENANT, first))
    assert len(await store.read(lambda tx: tx.deletions.under_way(later, limit=9))) == 2
    first.receipt.state = DeletionState.DELETION_STATE_COMPLETED
    await store.write(lambda tx: tx.deletions.replace(TENANT, first))
    assert await store.read(lambda tx: tx.deletions.under_way(later, limit=9)) == [(OTHER, "del_2")]
    assert await store.read(lambda tx: tx.deletions.get(TENANT, "del_1")) == first


async def test_another_tenants_deletion_is_as_good_as_none(store: Store) -> None:
    await store.write(lambda tx: tx.deletions.insert(TENANT, deletion("del_1")))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.deletions.get(OTHER, "del_1"))
