"""Runs that wait for a worker: how many may, in which order they start, and what their callers are told."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2

from famulus.v1.run_pb2 import Run, RunPriority, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, CreateRunRequest, ListRunsRequest
from famulus.v1.thread_service_pb2 import ListThreadsRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream
from famulus_server.engine.policy import Policy, Tier
from run_stage import Stage, open_stage, refused, stage_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUEUED, IN_PROGRESS = RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_IN_PROGRESS
CANCELLED = RunState.RUN_STATE_CANCELLED
INTERACTIVE = RunPriority.RUN_PRIORITY_INTERACTIVE
DEFAULT = RunPriority.RUN_PRIORITY_DEFAULT
BATCH = RunPriority.RUN_PRIORITY_BATCH

MOST = 3
HELD = Scene(times=1, deltas=6, hold_after=3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Executes one run at a time; three may wait."""
    folder = tmp_path_factory.mktemp("narrow")
    policy = Policy(tiers={"default": Tier(max_queued_runs=MOST)})
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(folder, upstream.base_url, worker={"slots": 1}, policy=policy)
        async with open_stage(settings, upstream) as opened:
            yield opened


async def hold(stage: Stage) -> Run:
    """A run that has the slot."""
    stage.play(HELD, Scene(text="fine"))
    run = await stage.start()
    await stage.until(run.id, "text_delta")
    return run


async def release(stage: Stage, *runs: Run) -> None:
    """Lets the held run end, and waits for the others as well."""
    (await stage.request()).released.set()
    for run in runs:
        await stage.wait(run.id)


async def count(stage: Stage) -> tuple[int, int]:
    """The numbers of runs and of threads."""
    runs = (await stage.runs.ListRuns(ListRunsRequest(page_size=100))).runs
    return len(runs), len((await stage.threads.ListThreads(ListThreadsRequest(page_size=100))).threads)


async def fill(stage: Stage, number: int = MOST, **fields: Any) -> list[Run]:
    return [await stage.start(**fields) for _ in range(number)]


async def test_run_that_would_wait_behind_too_many_is_refused_and_leaves_nothing(narrow: Stage) -> None:
    held = await hold(narrow)
    waiting = await fill(narrow)
    before = await count(narrow)
    refusal = await refused(narrow.start(request_id="again"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refusal.metadata == {"limit": "3"}
    [violation] = refusal.details["QuotaFailure"].violations  # type: ignore[attr-defined]
    assert violation.subject.startswith("tenant:")
    assert violation.description == "3 queued runs"
    told = refusal.details["RetryInfo"]
    assert isinstance(told, error_details_pb2.RetryInfo)
    assert told.retry_delay.seconds >= 1
    assert await count(narrow) == before
    # A refusal is not remembered: the same request is taken once there is room.
    await narrow.cancel(waiting[0].id)
    taken = await narrow.start(request_id="again")
    assert taken.state == QUEUED
    await release(narrow, held, *waiting, taken)


async def test_runs_in_line_are_counted_too(narrow: Stage) -> None:
    held = await hold(narrow)

    async def enqueue() -> Run:
        return await narrow.start(thread_id=held.thread_id, busy_policy=BusyPolicy.BUSY_POLICY_ENQUEUE)

    waiting = [await enqueue(), *await fill(narrow, MOST - 1)]
    for refusal in (await refused(enqueue()), await refused(narrow.start())):
        assert refusal.reason == "QUEUE_FULL"
    # When the runs before it on its thread end is nobody's guess.
    assert not waiting[0].HasField("estimated_start_time")
    await release(narrow, held, *waiting)


async def test_request_that_was_taken_is_answered_although_the_queue_is_full(narrow: Stage) -> None:
    held = await hold(narrow)
    create: CreateRunRequest = await narrow.wanted(request_id="taken")
    taken = (await narrow.runs.CreateRun(create)).run
    waiting = await fill(narrow, MOST - 1)
    assert (await refused(narrow.start())).reason == "QUEUE_FULL"
    assert (await narrow.runs.CreateRun(create)).run == taken
    await release(narrow, held, taken, *waiting)


async def test_more_urgent_runs_start_first(narrow: Stage) -> None:
    held = await hold(narrow)
    waiting = [await narrow.start(priority=priority) for priority in (BATCH, DEFAULT, INTERACTIVE)]
    assert [run.priority for run in waiting] == [BATCH, DEFAULT, INTERACTIVE]
    await release(narrow, held, *waiting)
    started = [(await narrow.get(run.id)).start_time.ToMicroseconds() for run in waiting]
    assert started == sorted(started, reverse=True)


async def test_run_without_a_priority_has_the_default_one_and_an_unknown_one_is_refused(narrow: Stage) -> None:
    narrow.play(Scene(text="fine"))
    assert (await narrow.play_out()).run.priority == DEFAULT
    refusal = await refused(narrow.start(priority=9))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["priority"])


async def test_queued_run_tells_when_it_may_start_until_it_does(narrow: Stage) -> None:
    held = await hold(narrow)
    assert not held.HasField("estimated_start_time")
    first, second, third = await fill(narrow)
    guesses = [run.estimated_start_time.ToMicroseconds() - run.create_time.ToMicroseconds() for run in (first, second)]
    # The second one waits for one start more.
    assert 0 < guesses[0] < guesses[1]
    cancelled = await narrow.cancel(third.id)
    assert (cancelled.state, cancelled.HasField("estimated_start_time")) == (CANCELLED, False)
    (await narrow.request()).released.set()
    told = [
        event.run_state_changed.run
        for event in (await narrow.tell(first.id)).events
        if event.HasField("run_state_changed")
    ]
    assert [run.HasField("estimated_start_time") for run in told] == [True, False, False]
    assert not (await narrow.get(first.id)).HasField("estimated_start_time")
    await release(narrow, held, second)
