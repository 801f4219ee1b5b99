"""Runs, in any store: one active per thread, fenced by attempt. Leases are in test_store_leases."""

import asyncio

import pytest

from contract.samples import ODD_IDS, OTHER, TENANT, add_run, add_thread, run
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import lifecycle
from famulus_server.errors import FailedPrecondition, LeaseLost, NotFound
from famulus_server.ports import Cursor, Lease, RunFilter, Store

IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
COMPLETED = RunState.RUN_STATE_COMPLETED


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
