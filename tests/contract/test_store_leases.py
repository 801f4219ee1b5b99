"""Who executes a run, and until when by the store's clock (contract 8), in any store."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from contract.samples import OTHER, START, TENANT, MovableClock, add_run, add_thread, claim_runs, run
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.errors import LeaseLost
from famulus_server.ports import Claimed, Lease, Store

QUEUED = RunState.RUN_STATE_QUEUED
IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
REQUIRES_ACTION = RunState.RUN_STATE_REQUIRES_ACTION
CANCELLING = RunState.RUN_STATE_CANCELLING
COMPLETED = RunState.RUN_STATE_COMPLETED

ANN = Lease("ann", 15)
BOB = Lease("bob", 15)


async def renew(store: Store, lease: Lease = ANN, run_ids: Sequence[str] = ("run_0", "run_1", "run_2")) -> set[str]:
    return await store.write(lambda tx: tx.runs.renew(lease, run_ids))


async def get(store: Store, run_id: str = "run_1") -> Run:
    return await store.read(lambda tx: tx.runs.get(TENANT, run_id))


async def insert(store: Store, made: Run, lease: Lease | None) -> None:
    await store.write(lambda tx: tx.runs.insert(TENANT, made, lease=lease))


async def replace(store: Store, made: Run, *, attempt: int, lease: Lease | None = None) -> None:
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=attempt, lease=lease))


async def test_claimed_run_is_in_progress_under_a_new_attempt(store: Store, clock: MovableClock) -> None:
    await add_run(store, run())
    clock.advance(3)
    (claimed,) = await claim_runs(store, ANN)
    assert (claimed.tenant, claimed.taken_over) == (TENANT, False)
    assert (claimed.run.state, claimed.run.attempt, claimed.run.etag) == (IN_PROGRESS, 1, "2")
    assert (claimed.run.turn_attempt, claimed.run.last_sequence) == (1, 1)
    assert claimed.run.start_time.ToDatetime(START.tzinfo) == START + timedelta(seconds=3)
    assert await get(store) == claimed.run
    assert await claim_runs(store, ANN) == []


async def test_each_run_is_claimed_once_by_many_at_once(store: Store) -> None:
    for number in range(20):
        await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}"))

    async def take(worker: int) -> list[Claimed]:
        return await store.write(lambda tx: tx.runs.claim(Lease(f"worker {worker}", 15), {TENANT: 3}))

    claimed = [one.run.id for some in await asyncio.gather(*map(take, range(10))) for one in some]
    assert len(claimed) == len(set(claimed)) == 20


async def test_run_that_waits_for_nobody_is_never_claimed(store: Store, clock: MovableClock) -> None:
    for number, state in enumerate([REQUIRES_ACTION, COMPLETED, RunState.RUN_STATE_CANCELLED]):
        await insert(store, run(f"run_{number}", thread_id=f"t{number}", state=state, attempt=1), ANN)
    clock.advance(1_000)
    assert await claim_runs(store, ANN) == []
    assert await renew(store) == set()


@pytest.mark.parametrize("state", [IN_PROGRESS, CANCELLING])
async def test_run_is_taken_over_when_its_lease_has_run_out(
    store: Store, clock: MovableClock, state: "RunState.ValueType"
) -> None:
    await insert(store, run(state=state, attempt=1), BOB)
    clock.advance(14.999)
    assert await claim_runs(store, ANN) == []
    clock.advance(0.001)
    (claimed,) = await claim_runs(store, ANN)
    assert claimed.taken_over
    assert (claimed.run.state, claimed.run.attempt) == (state, 2)
    # Nothing about the run became true that a watcher would be told.
    assert (claimed.run.turn_attempt, claimed.run.last_sequence) == (1, 0)
    with pytest.raises(LeaseLost):
        await replace(store, run(state=COMPLETED, attempt=1), attempt=1)


async def test_start_time_is_that_of_the_first_attempt(store: Store, clock: MovableClock) -> None:
    await add_run(store, run())
    await claim_runs(store, ANN)
    clock.advance(60)
    (claimed,) = await claim_runs(store, ANN)
    assert claimed.run.start_time.ToDatetime(START.tzinfo) == START


async def test_renewed_lease_lasts_from_the_renewal_on(store: Store, clock: MovableClock) -> None:
    await add_run(store, run())
    await claim_runs(store, ANN)
    clock.advance(10)
    assert await renew(store) == {"run_1"}
    clock.advance(14)
    assert await claim_runs(store, BOB) == []
    clock.advance(1)
    assert len(await claim_runs(store, BOB)) == 1


async def test_renewal_tells_which_runs_are_still_held(store: Store, clock: MovableClock) -> None:
    for number in range(3):
        await add_run(store, run(f"run_{number}", thread_id=f"t{number}", seconds=number))
    await claim_runs(store, ANN, limit=2)
    await claim_runs(store, BOB, limit=1)
    clock.advance(15)
    await claim_runs(store, BOB, limit=1)
    assert await renew(store, ANN) == {"run_1"}
    assert await renew(store, BOB) == {"run_0", "run_2"}
    assert await renew(store, Lease("nobody", 15)) == set()


async def test_lease_stays_while_the_run_is_owned_and_ends_with_it(store: Store, clock: MovableClock) -> None:
    made = run(state=IN_PROGRESS, attempt=1)
    await insert(store, made, ANN)
    await replace(store, made, attempt=1)
    made.state = CANCELLING
    await replace(store, made, attempt=1)
    assert await renew(store) == {"run_1"}
    made.state = RunState.RUN_STATE_CANCELLED
    await replace(store, made, attempt=1)
    assert await renew(store) == set()
    clock.advance(60)
    assert await claim_runs(store, ANN) == []


async def test_run_that_waits_for_outputs_holds_no_lease_and_is_claimed_when_queued_again(store: Store) -> None:
    made = run(state=IN_PROGRESS, attempt=1)
    await insert(store, made, ANN)
    made.state = REQUIRES_ACTION
    await replace(store, made, attempt=1)
    assert await renew(store) == set()
    made.state = QUEUED
    await replace(store, made, attempt=1)
    (claimed,) = await claim_runs(store, BOB)
    assert (claimed.run.attempt, claimed.taken_over) == (2, False)


async def test_replace_may_give_a_new_lease(store: Store, clock: MovableClock) -> None:
    made = run()
    await add_run(store, made)
    made.state = IN_PROGRESS
    made.attempt = 1
    await replace(store, made, attempt=0, lease=BOB)
    assert await renew(store, BOB) == {"run_1"}
    assert await claim_runs(store, ANN) == []
    # How a worker that stops lets go of a run: others need not wait its lease out.
    await replace(store, made, attempt=1, lease=Lease("", 0))
    assert await renew(store, BOB) == set()
    (claimed,) = await claim_runs(store, ANN)
    assert claimed.taken_over


async def test_owned_run_without_a_lease_is_not_lost(store: Store) -> None:
    await insert(store, run("run_1", thread_id="t1", state=IN_PROGRESS, attempt=1), None)
    made = run("run_2", thread_id="t2", state=REQUIRES_ACTION, attempt=1)
    await insert(store, made, None)
    made.state = IN_PROGRESS
    await replace(store, made, attempt=1)
    assert [one.run.id for one in await claim_runs(store, ANN)] == ["run_1", "run_2"]


async def test_runs_that_no_worker_watches_are_due_when_their_time_is_over(store: Store) -> None:
    samples = [
        run("queued", thread_id="t1", lives=10),
        run("waiting", thread_id="t2", state=REQUIRES_ACTION, lives=5),
        run("owned", thread_id="t3", state=IN_PROGRESS, lives=5),
        run("ended", thread_id="t4", state=COMPLETED, lives=5),
        run("young", thread_id="t5", lives=60),
        run("eternal", thread_id="t6", lives=None),
    ]
    for made in samples:
        await add_run(store, made)
    await add_run(store, run("queued", thread_id="t1", lives=11), tenant=OTHER)

    async def due(seconds: int, limit: int = 9) -> list[tuple[str, str]]:
        return await store.read(lambda tx: tx.runs.due(START + timedelta(seconds=seconds), limit=limit))

    assert await due(4) == []
    assert await due(5) == [(TENANT, "waiting")]
    assert await due(11) == [(TENANT, "waiting"), (TENANT, "queued"), (OTHER, "queued")]
    assert await due(11, limit=1) == [(TENANT, "waiting")]


async def test_renewal_leaves_leases_alone_that_it_does_not_name(store: Store, clock: MovableClock) -> None:
    for number in (0, 1):
        await add_thread(store, f"thread_{number}")
        await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}"))
    assert len(await claim_runs(store, ANN, limit=2)) == 2
    clock.advance(10)
    assert await renew(store, ANN, ["run_1"]) == {"run_1"}
    clock.advance(10)
    assert [one.run.id for one in await claim_runs(store, BOB, limit=2)] == ["run_0"]


async def test_ids_of_runs_are_those_of_one_thread(store: Store) -> None:
    for number in (0, 1):
        await add_thread(store, f"thread_{number}")
        await add_run(store, run(f"run_{number}", thread_id=f"thread_{number}"))
    assert [one.id for one in await store.read(lambda tx: tx.runs.outlines(TENANT, "thread_1"))] == ["run_1"]
    assert await store.read(lambda tx: tx.runs.outlines(OTHER, "thread_1")) == []
