"""Which runs wait for a worker, and who gets them, in any store."""

from datetime import timedelta

import pytest

from contract.samples import OTHER, START, TENANT, MovableClock, add_run, claim_runs, run
from famulus.v1.run_pb2 import Run, RunPriority, RunState
from famulus_server.errors import FailedPrecondition
from famulus_server.ports import Backlog, Lease, Queue, Store, Waiting

QUEUED = RunState.RUN_STATE_QUEUED
IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
INTERACTIVE = RunPriority.RUN_PRIORITY_INTERACTIVE
DEFAULT = RunPriority.RUN_PRIORITY_DEFAULT
BATCH = RunPriority.RUN_PRIORITY_BATCH

ANN = Lease("ann", 15)
NOTHING = Queue(abandoned=0, parked=0, waiting={})


async def add(store: Store, tenant: str, *run_ids: str) -> None:
    for number, run_id in enumerate(run_ids):
        await add_run(store, run(run_id, thread_id=f"thread of {run_id}", seconds=number), tenant=tenant)


async def queue(store: Store, *, first: str = "", limit: int = 10) -> Queue:
    return await store.read(lambda tx: tx.runs.queue(first=first, limit=limit))


async def claimed(store: Store, **shares: int) -> list[tuple[str, str]]:
    got = await store.write(lambda tx: tx.runs.claim(ANN, shares))
    return [(one.tenant, one.run.id) for one in got]


async def backlog(store: Store, made: Run, *, tenant: str = TENANT, limit: int = 100) -> Backlog:
    return await store.read(lambda tx: tx.runs.backlog(tenant, made, limit=limit))


async def park(store: Store, seconds: float, run_id: str = "run_1") -> Run:
    """As an executor does with a run at work whose model is down."""
    made = await store.read(lambda tx: tx.runs.get(TENANT, run_id))
    made.state = QUEUED
    at = START + timedelta(seconds=seconds)
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=made.attempt, wake_time=at))
    return made


async def wake(store: Store, limit: int = 10) -> int:
    return await store.write(lambda tx: tx.runs.wake(limit=limit))


async def test_queue_of_nobody_is_empty(store: Store) -> None:
    assert await queue(store) == NOTHING
    assert not await queue(store)
    assert await claimed(store) == []


async def test_tenants_are_named_from_one_on_and_round(store: Store) -> None:
    for tenant in ("b", "a", "d", "c"):
        await add(store, tenant, f"{tenant}1", f"{tenant}2")

    async def named(first: str, limit: int = 10) -> list[str]:
        return list((await queue(store, first=first, limit=limit)).waiting)

    assert await named("") == ["a", "b", "c", "d"]
    assert await named("c") == ["c", "d", "a", "b"]
    assert await named("bb") == ["c", "d", "a", "b"]
    assert await named("z") == ["a", "b", "c", "d"]
    assert await named("d", limit=2) == ["d", "a"]
    assert await named("a", limit=1) == ["a"]


async def test_runs_that_wait_are_counted_up_to_the_limit(store: Store) -> None:
    await add(store, "a", "a1", "a2", "a3")
    await add(store, "b", "b1")
    assert (await queue(store, limit=10)).waiting == {"a": 3, "b": 1}
    assert (await queue(store, limit=2)).waiting == {"a": 2, "b": 1}


async def test_each_tenant_gets_its_share_in_the_order_of_its_queue(store: Store) -> None:
    await add(store, "a", "a1", "a2", "a3")
    await add(store, "b", "b1", "b2", "b3")
    await add(store, "c", "c1")
    assert await claimed(store, b=2, a=1) == [("b", "b1"), ("b", "b2"), ("a", "a1")]
    assert await claimed(store, b=9, d=1) == [("b", "b3")]
    assert (await queue(store)).waiting == {"a": 2, "c": 1}


async def test_more_urgent_runs_go_first_unless_others_have_waited_for_long(store: Store) -> None:
    def made(name: str, priority: "RunPriority.ValueType", seconds: int) -> Run:
        one = run(name, thread_id=name, seconds=seconds)
        one.priority = priority
        return one

    await add_run(store, made("batch", BATCH, 0))
    await add_run(store, made("default", DEFAULT, 1))
    await add_run(store, made("unspecified", RunPriority.RUN_PRIORITY_UNSPECIFIED, 2))
    await add_run(store, made("urgent", INTERACTIVE, 3))
    await add_run(store, made("urgent, but late", INTERACTIVE, 7))
    await add_run(store, made("default, and later than batch", DEFAULT, 56))
    order = [name for _, name in await claimed(store, acme=10)]
    assert order == ["urgent", "default", "unspecified", "urgent, but late", "batch", "default, and later than batch"]


async def test_run_that_is_queued_again_keeps_its_place(store: Store) -> None:
    await add(store, TENANT, "old", "new")
    [old] = await store.write(lambda tx: tx.runs.claim(ANN, {TENANT: 1}))
    old.run.state = RunState.RUN_STATE_REQUIRES_ACTION
    await store.write(lambda tx: tx.runs.replace(TENANT, old.run, attempt=1))
    old.run.state = QUEUED
    await store.write(lambda tx: tx.runs.replace(TENANT, old.run, attempt=1))
    assert await claimed(store, acme=2) == [(TENANT, "old"), (TENANT, "new")]


async def test_claim_ends_the_guess_of_when_it_would_be(store: Store) -> None:
    made = run()
    made.estimated_start_time.FromDatetime(START)
    await add_run(store, made)
    [got] = await claim_runs(store, ANN)
    assert not got.run.HasField("estimated_start_time")


async def test_abandoned_runs_are_no_tenants_turn(store: Store, clock: MovableClock) -> None:
    for number in range(3):
        held = run(f"run_{number}", thread_id=f"t{number}", state=IN_PROGRESS, attempt=1, seconds=number)
        await store.write(lambda tx, h=held: tx.runs.insert(TENANT, h, lease=ANN))  # type: ignore[misc]
    assert await queue(store) == NOTHING
    clock.advance(15)
    assert (await queue(store)).abandoned == 3
    assert (await queue(store, limit=2)).abandoned == 2
    assert await claimed(store, acme=5) == []
    taken = await store.write(lambda tx: tx.runs.take_over(ANN, limit=2))
    assert [(one.run.id, one.taken_over) for one in taken] == [("run_0", True), ("run_1", True)]
    assert (await queue(store)).abandoned == 1


async def test_parked_run_is_claimed_when_its_time_has_come_and_not_before(store: Store, clock: MovableClock) -> None:
    await add(store, TENANT, "run_1", "run_2")
    await claimed(store, acme=1)
    await park(store, 5)
    assert await queue(store) == Queue(abandoned=0, parked=0, waiting={TENANT: 1})
    assert await claimed(store, acme=2) == [(TENANT, "run_2")]
    clock.advance(4.999)
    assert await wake(store) == 0
    assert await queue(store) == NOTHING
    clock.advance(0.001)
    assert await queue(store) == Queue(abandoned=0, parked=1, waiting={})
    assert await claimed(store, acme=2) == []
    assert await wake(store) == 1
    assert await wake(store) == 0
    [again] = await claim_runs(store, ANN)
    # Its attempts count on, and it is nobody's that was lost.
    assert (again.run.id, again.run.attempt, again.taken_over) == ("run_1", 2, False)
    clock.advance(15)
    assert (await queue(store)).abandoned == 2


async def test_parked_runs_wake_first_to_last_and_only_so_many_at_once(store: Store, clock: MovableClock) -> None:
    await add(store, TENANT, "a", "b", "c")
    await claimed(store, acme=3)
    for run_id, seconds in (("a", 9), ("b", 7), ("c", 8)):
        await park(store, seconds, run_id)
    clock.advance(10)
    assert (await queue(store, limit=2)).parked == 2
    assert await wake(store, limit=2) == 2
    # Their places are those that they had before.
    assert await claimed(store, acme=3) == [(TENANT, "b"), (TENANT, "c")]


async def test_run_stays_parked_while_it_is_stored_again_and_no_longer_once_it_has_ended(
    store: Store, clock: MovableClock
) -> None:
    await add(store, TENANT, "run_1")
    await claimed(store, acme=1)
    made = await park(store, 5)
    made.metadata["k"] = "v"
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=1))
    assert await queue(store) == NOTHING
    made.state = RunState.RUN_STATE_CANCELLED
    await store.write(lambda tx: tx.runs.replace(TENANT, made, attempt=1))
    clock.advance(5)
    assert await queue(store) == NOTHING
    assert await wake(store) == 0


async def test_parked_run_is_active_and_expires_in_time(store: Store) -> None:
    await add_run(store, run(lives=3))
    await claimed(store, acme=1)
    await park(store, 60)
    with pytest.raises(FailedPrecondition):
        await add_run(store, run("run_2"))
    assert await store.read(lambda tx: tx.runs.due(START + timedelta(seconds=3), limit=9)) == [(TENANT, "run_1")]


async def test_backlog_counts_all_that_wait_and_those_that_are_ahead(store: Store) -> None:
    await add(store, TENANT, "held", "a", "b", "c")
    await add(store, OTHER, "other")
    await claimed(store, acme=1)
    await park(store, 60, "held")
    waiting = run("line")
    await store.write(lambda tx: tx.runs.insert(TENANT, waiting, lease=None, line=3))

    late, urgent = run("new", seconds=60), run("new", seconds=60)
    urgent.create_time.FromDatetime(START + timedelta(seconds=7))
    urgent.priority = INTERACTIVE
    # "held" was started.
    assert await backlog(store, late) == Backlog(queued=5, ahead=3, starts=1, seconds=60.0)
    # Created 1, 2 and 3 s after the start, 5 s behind.
    assert await backlog(store, urgent) == Backlog(queued=5, ahead=2, starts=1, seconds=60.0)
    assert (await backlog(store, late, tenant=OTHER)).queued == 1
    assert await backlog(store, late, tenant="nobody") == Backlog(queued=0, ahead=0, starts=0, seconds=60.0)


async def test_backlog_is_counted_up_to_its_limit(store: Store) -> None:
    await add(store, TENANT, *"abcdef")
    counted = await backlog(store, run(seconds=60), limit=3)
    assert counted.queued >= 3
    assert counted.ahead == 3


async def test_starts_are_those_of_the_last_minute(store: Store, clock: MovableClock) -> None:
    await add(store, TENANT, "a", "b", "c")
    await claimed(store, acme=2)
    clock.advance(30)
    await claimed(store, acme=1)
    assert (await backlog(store, run())).starts == 3
    clock.advance(30)
    assert (await backlog(store, run())).starts == 1
    # Taken over is not started.
    await claim_runs(store, ANN)
    assert (await backlog(store, run())).starts == 1


async def test_run_that_begins_at_once_is_a_start(store: Store) -> None:
    made = run(state=IN_PROGRESS, attempt=1)
    made.start_time.FromDatetime(START)
    await store.write(lambda tx: tx.runs.insert(TENANT, made, lease=ANN))
    assert (await backlog(store, run())).starts == 1


async def test_of_many_starts_the_last_hundred_tell_how_fast_it_goes(store: Store, clock: MovableClock) -> None:
    for number in range(110):
        made = run(f"run_{number}", thread_id=f"t{number}", state=IN_PROGRESS, attempt=1)
        made.start_time.FromDatetime(START + timedelta(seconds=number / 10))
        await store.write(lambda tx, m=made: tx.runs.insert(TENANT, m, lease=ANN))  # type: ignore[misc]
    clock.advance(11)
    found = await backlog(store, run())
    assert (found.starts, found.seconds) == (100, 10.0)


async def waiting(store: Store, limit: int = 100) -> Waiting:
    return await store.read(lambda tx: tx.runs.waiting(limit=limit))


async def test_runs_that_wait_are_counted_over_all_tenants(store: Store, clock: MovableClock) -> None:
    assert await waiting(store) == Waiting(runs=0, oldest_seconds=0.0)
    await add(store, TENANT, "run_1", "run_2")
    await add(store, OTHER, "run_3")
    clock.advance(90)
    assert await waiting(store) == Waiting(runs=3, oldest_seconds=90.0)
    assert (await waiting(store, limit=2)).runs == 2
    await claimed(store, **{TENANT: 1, OTHER: 1})
    assert await waiting(store) == Waiting(runs=1, oldest_seconds=89.0)


async def test_parked_runs_do_not_wait_and_those_that_had_begun_are_not_the_oldest(
    store: Store, clock: MovableClock
) -> None:
    await add(store, TENANT, "run_1", "run_2")
    await claimed(store, **{TENANT: 1})
    await park(store, 60)
    clock.advance(61)
    assert await waiting(store) == Waiting(runs=1, oldest_seconds=60.0)
    await wake(store)
    assert await waiting(store) == Waiting(runs=2, oldest_seconds=60.0)
    await claimed(store, **{TENANT: 2})
    assert await waiting(store) == Waiting(runs=0, oldest_seconds=0.0)
