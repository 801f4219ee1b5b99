"""Runs, in any store: one active per thread, fenced by attempt. Leases are in test_store_leases."""

import asyncio
from datetime import timedelta

import pytest

from contract.samples import (
    ODD_IDS,
    OTHER,
    START,
    TENANT,
    add_run,
    add_thread,
    claim_runs,
    message,
    read_texts,
    run,
    thread,
)
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import lifecycle
from famulus_server.errors import FailedPrecondition, LeaseLost, NotFound
from famulus_server.ports import Cursor, Lease, RunFilter, Store, Transaction

IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
COMPLETED = RunState.RUN_STATE_COMPLETED
CANCELLING = RunState.RUN_STATE_CANCELLING


async def ids(
    store: Store,
    which: RunFilter | None = None,
    *,
    after: Cursor | None = None,
    limit: int = 100,
    tenant: str = TENANT,
) -> list[str]:
    found = await store.read(lambda tx: tx.runs.page(tenant, which or RunFilter(), after=after, limit=limit))
    return [made.id for made in found]


async def test_new_run_reads_as_stored(store: Store) -> None:
    made = run()
    await add_run(store, made)
    assert made.etag == "1"
    assert await store.read(lambda tx: tx.runs.get(TENANT, "run_1")) == made


async def test_unknown_run_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))


@pytest.mark.parametrize("state", sorted(lifecycle.ACTIVE))
async def test_second_run_is_refused_while_one_is_active(store: Store, state: "RunState.ValueType") -> None:
    await add_run(store, run(state=state))
    with pytest.raises(FailedPrecondition) as refusal:
        await add_run(store, run("run_2"))
    assert refusal.value.reason == ErrorReason.ERROR_REASON_THREAD_HAS_ACTIVE_RUN
    assert refusal.value.metadata == {"run_id": "run_1"}
    assert await ids(store) == ["run_1"]


@pytest.mark.parametrize("state", sorted(lifecycle.FINAL))
async def test_next_run_is_taken_once_the_last_has_ended(store: Store, state: "RunState.ValueType") -> None:
    made = run()
    await add_run(store, made)
    made.state = state
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=0))
    await add_run(store, run("run_2", seconds=1))
    assert await ids(store) == ["run_2", "run_1"]


async def test_threads_and_tenants_do_not_block_each_other(store: Store) -> None:
    await add_run(store, run())
    await add_run(store, run("run_2", thread_id="thread_2"))
    await add_run(store, run(), tenant=OTHER)
    assert len(await ids(store)) == 2


async def test_of_64_runs_at_once_on_a_thread_one_is_taken(store: Store) -> None:
    async def attempt(number: int) -> str:
        try:
            await add_run(store, run(f"run_{number}"))
        except FailedPrecondition as refusal:
            return refusal.metadata["run_id"]
        return f"run_{number}"

    named = await asyncio.gather(*(attempt(number) for number in range(64)))
    assert set(named) == set(await ids(store))
    assert len(set(named)) == 1


async def test_replace_stores_everything_and_moves_the_etag_on(store: Store) -> None:
    made = run(state=IN_PROGRESS, attempt=1)
    await add_run(store, made)
    made.usage.total_tokens = 7
    made.metadata["k"] = "v"
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=1))
    assert made.etag == "2"
    assert await store.read(lambda tx: tx.runs.get(TENANT, "run_1")) == made


async def test_write_of_a_past_attempt_changes_nothing(store: Store) -> None:
    await add_run(store, run(state=IN_PROGRESS, attempt=2))
    late = run(state=COMPLETED, attempt=1)
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.runs.replace(TENANT, late, attempt=1))
    read = await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))
    assert (read.state, read.attempt, read.etag) == (IN_PROGRESS, 2, "1")


async def test_replace_may_move_the_attempt_on_and_then_fences_the_old_one(store: Store) -> None:
    await add_run(store, run())
    await store.write(lambda tx: tx.runs.replace(TENANT, run(state=IN_PROGRESS, attempt=1), attempt=0))
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.runs.replace(TENANT, run(state=IN_PROGRESS, attempt=1), attempt=0))
    await store.write(lambda tx: tx.runs.replace(TENANT, run(state=COMPLETED, attempt=1), attempt=1))


async def test_replace_of_a_run_that_is_gone_is_a_lost_lease(store: Store) -> None:
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.runs.replace(TENANT, run(), attempt=0))


async def test_held_run_is_as_stored_whatever_its_owner_knows_and_has_room_for_messages(store: Store) -> None:
    await add_thread(store, "thread_1", "a")
    known = run(state=IN_PROGRESS, attempt=1)
    await add_run(store, known)
    at = START + timedelta(seconds=9)

    async def unit(tx: Transaction) -> tuple[Run, int]:
        held, first = await tx.runs.hold(TENANT, known, at, messages=2)
        await tx.messages.put(TENANT, "thread_1", [message("b"), message("c")], first=first)
        return held, first

    held, first = await store.write(unit)
    assert (held, first) == (known, 2)
    assert held is not known
    assert await read_texts(store, "thread_1") == ["a", "b", "c"]
    found = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert (found.last_message_sequence, found.last_activity_time.ToDatetime(at.tzinfo)) == (3, at)
    held.metadata["k"] = "v"
    await store.write(lambda tx: tx.runs.replace(TENANT, held, attempt=1))
    again, first = await store.write(lambda tx: tx.runs.hold(TENANT, known, START))
    assert (again, first) == (held, 4)
    found = await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))
    assert (found.last_message_sequence, found.last_activity_time.ToDatetime(at.tzinfo)) == (3, at)


async def test_run_that_is_gone_cannot_be_held(store: Store) -> None:
    known = run(state=IN_PROGRESS, attempt=1)
    await add_run(store, known)
    for made in (run("none"), run(thread_id="none"), known):
        if made is known:
            await store.write(lambda tx: tx.threads.insert(TENANT, thread()))
            await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
        with pytest.raises(NotFound):
            await store.write(lambda tx, made=made: tx.runs.hold(TENANT, made, START))  # type: ignore[misc]


async def test_list_is_newest_first_and_a_cursor_continues_it(store: Store) -> None:
    for number, seconds in enumerate([0, 5, 5, 9]):
        await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}", seconds=seconds))
    assert await ids(store, limit=2) == ["run_3", "run_2"]
    place = Cursor(run(seconds=5).create_time.ToMicroseconds(), "run_2")
    assert await ids(store, after=place) == ["run_1", "run_0"]


async def test_filters_by_thread_assistant_and_states_all_hold_at_once(store: Store) -> None:
    samples = [
        run("a", thread_id="t1", assistant_id="x", state=COMPLETED, seconds=1),
        run("b", thread_id="t1", assistant_id="y", state=RunState.RUN_STATE_EXPIRED, seconds=2),
        run("c", thread_id="t1", assistant_id="x", seconds=3),
        run("d", thread_id="t2", assistant_id="x", seconds=4),
    ]
    for made in samples:
        await add_run(store, made)
    queued = [RunState.RUN_STATE_QUEUED]
    assert await ids(store, RunFilter(thread_id="t1")) == ["c", "b", "a"]
    assert await ids(store, RunFilter(assistant_id="x")) == ["d", "c", "a"]
    assert await ids(store, RunFilter(thread_id="t1", assistant_id="x")) == ["c", "a"]
    assert await ids(store, RunFilter(states=queued)) == ["d", "c"]
    assert await ids(store, RunFilter(states=[COMPLETED, RunState.RUN_STATE_EXPIRED])) == ["b", "a"]
    assert await ids(store, RunFilter(thread_id="t1", assistant_id="x", states=queued)) == ["c"]
    assert await ids(store, RunFilter(assistant_id="y", states=queued)) == []
    assert await ids(store, RunFilter(thread_id="t1"), limit=1) == ["c"]
    place = Cursor(samples[2].create_time.ToMicroseconds(), "c")
    assert await ids(store, RunFilter(thread_id="t1"), after=place) == ["b", "a"]
    assert await ids(store, RunFilter(assistant_id="x"), after=place) == ["a"]


async def test_another_tenants_run_is_as_good_as_none(store: Store) -> None:
    await add_thread(store, "thread_1")
    await store.write(lambda tx: tx.runs.insert(TENANT, run(state=IN_PROGRESS, attempt=1), lease=Lease("worker", 15)))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get(OTHER, "run_1"))
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.runs.replace(OTHER, Run(id="run_1", attempt=1), attempt=1))
    for which in (RunFilter(), RunFilter(thread_id="thread_1"), RunFilter(assistant_id="asst_1")):
        assert await ids(store, which, tenant=OTHER) == []
    assert (await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))).etag == "1"


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_odd_ids_are_only_ids(store: Store, odd: str) -> None:
    await add_run(store, run())
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get(TENANT, odd))
    if odd:
        assert await ids(store, RunFilter(thread_id=odd)) == []
        assert await ids(store, RunFilter(assistant_id=odd)) == []


async def line_up(store: Store, *places: int, thread_id: str = "thread_1", tenant: str = TENANT) -> None:
    """Runs `line_PLACE` in line."""
    for place in places:
        waiting = run(f"line_{place}", thread_id=thread_id)
        await store.write(lambda tx, w=waiting, p=place: tx.runs.insert(tenant, w, lease=None, line=p))  # type: ignore[misc]


async def line_of(store: Store, *, upto: int = 1_000, tenant: str = TENANT) -> list[str]:
    found = await store.write(lambda tx: tx.runs.in_line(tenant, "thread_1", upto=upto))
    return [made.id for made in found]


async def end(store: Store, run_id: str) -> None:
    made = await store.read(lambda tx: tx.runs.get(TENANT, run_id))
    made.state = COMPLETED
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=made.attempt))


async def test_who_stores_a_run_learns_whether_others_wait_in_line(store: Store) -> None:
    await add_thread(store, "thread_1")
    first, second = run(state=IN_PROGRESS, attempt=1), run("run_2")
    await add_run(store, first)
    assert not await store.write(lambda tx: tx.runs.replace(TENANT, first, attempt=1))
    await store.write(lambda tx: tx.runs.insert(TENANT, second, lease=None, line=1))
    await store.write(lambda tx: tx.runs.insert(OTHER, run("run_3"), lease=None, line=1))
    assert await store.write(lambda tx: tx.runs.replace(TENANT, first, attempt=1))
    assert not await store.write(lambda tx: tx.runs.replace(TENANT, second, attempt=0))


async def promote(store: Store, *, thread_id: str = "thread_1", tenant: str = TENANT) -> str:
    promoted = await store.write(lambda tx: tx.runs.promote(tenant, thread_id))
    return promoted.id if promoted else ""


async def active(store: Store, *, thread_id: str = "thread_1", tenant: str = TENANT) -> str:
    found = await store.write(lambda tx: tx.runs.active(tenant, thread_id))
    return found.id if found else ""


async def test_runs_in_line_are_neither_active_nor_anybodys_to_claim(store: Store) -> None:
    await add_thread(store, "thread_1")
    await add_run(store, run(state=IN_PROGRESS, attempt=1))
    await line_up(store, 7, 3, 0)
    assert await active(store) == "run_1"
    assert (await store.read(lambda tx: tx.threads.get(TENANT, "thread_1"))).active_run_id == "run_1"
    # run_1 has no lease, so it is claimed as one whose worker is gone.
    claimed = await claim_runs(store, Lease("worker", 15), limit=10)
    assert [one.run.id for one in claimed] == ["run_1"]
    assert not await store.read(lambda tx: tx.runs.queue(first="", limit=1))
    assert set(await ids(store, RunFilter(states=[RunState.RUN_STATE_QUEUED]))) == {"line_0", "line_3", "line_7"}


async def test_line_is_read_in_its_order_up_to_a_place(store: Store) -> None:
    await add_run(store, run(state=IN_PROGRESS))
    await line_up(store, 7, 0, 3)
    await line_up(store, 1, thread_id="thread_2")
    assert await line_of(store) == ["line_0", "line_3", "line_7"]
    assert await line_of(store, upto=3) == ["line_0", "line_3"]
    assert await line_of(store, upto=0) == ["line_0"]
    assert await line_of(store, tenant=OTHER) == []


async def test_first_in_line_is_promoted_once_nobody_is_active(store: Store) -> None:
    await add_thread(store, "thread_1")
    await add_run(store, run(state=IN_PROGRESS))
    await line_up(store, 7, 3)
    assert await promote(store) == ""
    await end(store, "run_1")
    assert await active(store) == ""
    assert await promote(store) == "line_3"
    assert await promote(store) == ""
    assert await active(store) == "line_3"
    assert await line_of(store) == ["line_7"]
    promoted = await store.read(lambda tx: tx.runs.get(TENANT, "line_3"))
    assert (promoted.state, promoted.etag) == (RunState.RUN_STATE_QUEUED, "2")
    claimed = await claim_runs(store, Lease("worker", 15), limit=10)
    assert [(one.run.id, one.taken_over) for one in claimed] == [("line_3", False)]
    with pytest.raises(FailedPrecondition):
        await add_run(store, run("run_2"))


async def test_line_of_another_thread_or_tenant_is_not_promoted(store: Store) -> None:
    await line_up(store, 3, thread_id="thread_2")
    assert await promote(store) == ""
    assert await promote(store, thread_id="thread_2", tenant=OTHER) == ""
    assert await promote(store, thread_id="thread_2") == "line_3"


async def test_run_in_line_stays_there_when_it_is_stored_again_and_leaves_when_it_ends(store: Store) -> None:
    await add_run(store, run(state=IN_PROGRESS))
    await line_up(store, 3, 7)
    waiting = await store.read(lambda tx: tx.runs.get(TENANT, "line_3"))
    waiting.metadata["k"] = "v"
    await store.write(lambda tx: tx.runs.replace(TENANT, waiting, attempt=0))
    assert await line_of(store) == ["line_3", "line_7"]
    await end(store, "line_3")
    assert await line_of(store) == ["line_7"]
    assert await active(store) == "run_1"


async def test_line_is_held_while_it_is_changed(store: Store) -> None:
    """As an interrupt ends a run in line whose metadata its caller changes: neither change may be lost."""
    await line_up(store, 0)

    async def count_in_line(tx: Transaction) -> None:
        [waiting] = await tx.runs.in_line(TENANT, "thread_1", upto=0)
        await count(tx, waiting, "interrupts")

    async def count_by_id(tx: Transaction) -> None:
        await count(tx, await tx.runs.get(TENANT, "line_0", lock=True), "updates")

    async def count(tx: Transaction, made: Run, what: str) -> None:
        made.metadata[what] = str(int(made.metadata[what] or 0) + 1)
        await tx.runs.replace(TENANT, made, attempt=0)

    await asyncio.gather(*(store.write(unit) for _ in range(20) for unit in (count_in_line, count_by_id)))
    counted = (await store.read(lambda tx: tx.runs.get(TENANT, "line_0"))).metadata
    assert dict(counted) == {"interrupts": "20", "updates": "20"}


async def test_active_run_is_held_while_it_is_changed(store: Store) -> None:
    await add_run(store, run())

    async def count(tx: Transaction) -> None:
        made = await tx.runs.active(TENANT, "thread_1")
        assert made is not None
        made.metadata["count"] = str(int(made.metadata["count"] or 0) + 1)
        await tx.runs.replace(TENANT, made, attempt=0)

    await asyncio.gather(*(store.write(count) for _ in range(20)))
    assert (await store.read(lambda tx: tx.runs.get(TENANT, "run_1"))).metadata["count"] == "20"


async def test_messages_wait_with_their_run_and_are_taken_once(store: Store) -> None:
    kept = [message(f"msg_{number}", text="x" * number) for number in range(12)]
    await line_up(store, 3, 7)
    await store.write(lambda tx: tx.runs.keep_messages(TENANT, "line_3", kept))
    await store.write(lambda tx: tx.runs.keep_messages(TENANT, "line_7", []))
    assert await store.write(lambda tx: tx.runs.take_messages(OTHER, "line_3")) == []
    assert await store.write(lambda tx: tx.runs.take_messages(TENANT, "line_7")) == []
    assert await store.write(lambda tx: tx.runs.take_messages(TENANT, "line_3")) == kept
    assert await store.write(lambda tx: tx.runs.take_messages(TENANT, "line_3")) == []


async def test_messages_that_wait_go_with_their_thread(store: Store) -> None:
    await add_thread(store, "thread_1")
    await add_thread(store, "thread_2")
    await line_up(store, 3)
    await line_up(store, 7, thread_id="thread_2")
    for run_id in ("line_3", "line_7"):
        await store.write(lambda tx, r=run_id: tx.runs.keep_messages(TENANT, r, [message("msg_1")]))  # type: ignore[misc]
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    assert await store.write(lambda tx: tx.runs.take_messages(TENANT, "line_3")) == []
    assert len(await store.write(lambda tx: tx.runs.take_messages(TENANT, "line_7"))) == 1


async def test_owner_is_told_which_of_its_runs_are_to_stop(store: Store) -> None:
    for number, owner in enumerate(["one", "one", "two"]):
        held = run(f"run_{number}", thread_id=f"thread_{number}", state=IN_PROGRESS, attempt=1)
        await store.write(lambda tx, r=held, o=owner: tx.runs.insert(TENANT, r, lease=Lease(o, 15)))  # type: ignore[misc]
    assert await store.read(lambda tx: tx.runs.stopping("one")) == set()
    for number in (1, 2):
        stopping = await store.read(lambda tx, n=number: tx.runs.get(TENANT, f"run_{n}"))  # type: ignore[misc]
        stopping.state = CANCELLING
        await store.write(lambda tx, r=stopping: tx.runs.replace(TENANT, r, attempt=1))  # type: ignore[misc]
    assert await store.read(lambda tx: tx.runs.stopping("one")) == {"run_1"}
    assert await store.read(lambda tx: tx.runs.stopping("two")) == {"run_2"}


async def test_versions_name_the_etags_of_runs_that_exist(store: Store) -> None:
    await add_run(store, run())
    await add_run(store, run(), tenant=OTHER)
    await end(store, "run_1")
    keys = [(TENANT, "run_1"), (OTHER, "run_1"), (TENANT, "run_none"), *((TENANT, odd) for odd in ODD_IDS)]
    assert await store.read(lambda tx: tx.runs.versions(keys)) == {(TENANT, "run_1"): "2", (OTHER, "run_1"): "1"}
    assert await store.read(lambda tx: tx.runs.versions([])) == {}
