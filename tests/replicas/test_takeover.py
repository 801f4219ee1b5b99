"""Replicas that die or freeze in the middle of runs, and those that go on with the runs (contract 8, 9, 11, 16)."""

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, WatchRunRequest
from famulus_server.embedded.upstream import ReceivedRequest, Scene, ScriptedUpstream
from famulus_server.engine import facts
from killable_server import open_killable
from replicas.agreement import check_agreement
from replicas.conftest import OpenReplica
from run_stage import Stage
from validator import validate_stream

pytestmark = pytest.mark.usefixtures("unhurried")

# On a busy machine a lease, and a poll after it, may take long.
PATIENCE = 30.0
# Long enough for a replica that a busy machine holds up, as a test has to wait for it.
LEASE = {"lease_seconds": 2.0}
HELD_ONCE = Scene(times=1, deltas=6, hold_after=3)
FOUR_WORDS = Scene(deltas=4)

OpenDoomed = Callable[..., AbstractAsyncContextManager[tuple[Stage, Process]]]


@pytest.fixture
def open_doomed(tmp_path: Path, upstream: ScriptedUpstream, shared: dict[str, Any]) -> OpenDoomed:
    """Opens a replica in a process of its own, with a short lease."""
    numbers = iter(range(100))

    def open_one(**settings: Any) -> AbstractAsyncContextManager[tuple[Stage, Process]]:
        return open_killable(tmp_path / f"doomed{next(numbers)}", upstream, **shared, worker=LEASE, **settings)

    return open_one


async def asked(upstream: ScriptedUpstream, number: int) -> ReceivedRequest:
    return await upstream.wait_for_request(number, timeout=PATIENCE)


async def watch_until_lost(stage: Stage, run_id: str) -> list[RunEvent]:
    """What a watcher sees until its replica is gone."""
    seen: list[RunEvent] = []

    async def watch() -> None:
        async for response in stage.runs.WatchRun(WatchRunRequest(run_id=run_id)):
            seen.extend(response.events)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return seen


def kinds(events: list[RunEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def test_run_of_a_killed_replica_goes_on_elsewhere_and_its_text_counts_once(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    async with open_doomed() as (doomed, process), open_replica() as second, open_replica() as third:
        doomed.play(HELD_ONCE, FOUR_WORDS)
        run = await doomed.start()
        lost = asyncio.create_task(watch_until_lost(doomed, run.id))
        watching = [asyncio.create_task(stage.watch(run.id)) for stage in (second, third)]
        await asyncio.gather(*(stage.until_text(run.id, " w3") for stage in (doomed, second, third)))
        process.kill()
        before = await lost
        story = await second.tell(run.id)
        assert (story.run.state, story.run.attempt, story.text) == (
            RunState.RUN_STATE_COMPLETED,
            2,
            "w1 w2 w3 w4",
        )
        assert await third.texts(run.thread_id) == ["hello", "w1 w2 w3 w4"]
        [started] = story.all("attempt_started")
        assert (started.attempt, started.discards_after_sequence) == (2, 1)
        assert len(upstream.requests) == 2, "more than one replica went on with it"
        # Who lost its stream resumes it on any other replica; who watched through another one lost nothing.
        for stage in (second, third):
            after = await stage.watch(run.id, before[-1].sequence)
            assert after[0].sequence == facts.sequence_base(2) + 1
            validate_stream(before + after)
        for events in await asyncio.gather(*watching):
            check_agreement(events, before + after)


async def test_each_run_of_a_killed_replica_is_claimed_by_exactly_one(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    count = 12
    async with open_doomed() as (doomed, process), open_replica() as second, open_replica() as third:
        doomed.play(Scene(times=count, deltas=6, hold_after=3), FOUR_WORDS)
        runs = [await doomed.start() for _ in range(count)]
        await asked(upstream, count)
        process.kill()
        for run in runs:
            story = await second.tell(run.id)
            assert (story.run.state, story.run.attempt) == (RunState.RUN_STATE_COMPLETED, 2)
            assert await third.texts(run.thread_id) == ["hello", "w1 w2 w3 w4"]
        assert len(upstream.requests) == 2 * count


@pytest.mark.parametrize("thawed", ["while the new attempt works", "after the new attempt has ended"])
async def test_frozen_replica_writes_nothing_late_and_its_watchers_see_the_new_attempt(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream, thawed: str
) -> None:
    async with open_doomed() as (frozen, process), open_replica() as other:
        frozen.play(HELD_ONCE, Scene(text="the new attempt", hold_after=1))
        run = await frozen.start()
        watching = asyncio.create_task(frozen.watch(run.id))
        await frozen.until_text(run.id, " w3")
        process.send_signal(signal.SIGSTOP)
        try:
            first, second = await asked(upstream, 1), await asked(upstream, 2)
            # The model says all the rest, so that the frozen replica has a whole turn to store once it goes on.
            first.released.set()
            await upstream.wait_for_end(1, timeout=PATIENCE)
            if thawed.startswith("after"):
                second.released.set()
                await other.wait(run.id)
        finally:
            process.send_signal(signal.SIGCONT)
        # It answers again: what it was about to write, it has tried to.
        await frozen.get(run.id)
        second.released.set()
        seen = await asyncio.wait_for(watching, PATIENCE)
        story = await other.tell(run.id)
        assert (story.run.state, story.run.attempt, story.text) == (
            RunState.RUN_STATE_COMPLETED,
            2,
            "the new attempt",
        )
        assert await frozen.texts(run.thread_id) == ["hello", "the new attempt"]
        validate_stream(seen)
        assert seen[-1] == story.events[-1]
        assert kinds(seen).count("message_completed") == 1
        # It has dropped the run, and takes new ones.
        assert len(upstream.requests) == 2
        frozen.play(Scene(text="fine"))
        assert (await frozen.play_out()).text == "fine"


async def test_run_on_which_three_replicas_died_fails_as_worker_lost(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    async with open_replica(server={"role": "api"}) as api:
        api.play(Scene(deltas=6, hold_after=3))
        run = await api.start()
        watching = asyncio.create_task(api.watch(run.id))
        for number in (1, 2, 3):
            async with open_doomed(server={"role": "worker"}) as (_, process):
                await asked(upstream, number)
                process.kill()
        async with open_replica(server={"role": "worker"}):
            story = await api.tell(run.id)
            seen = await watching
        assert (story.run.state, story.run.error.code) == (
            RunState.RUN_STATE_FAILED,
            RunErrorCode.RUN_ERROR_CODE_WORKER_LOST,
        )
        assert story.messages == []
        validate_stream(seen)
        assert seen[-1] == story.events[-1]
        assert await api.active_run(run.thread_id) == ""
        assert len(upstream.requests) == 3


async def test_runs_in_line_behind_that_of_a_killed_replica_get_their_turn(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    async with open_doomed() as (doomed, process), open_replica() as other:
        doomed.play(HELD_ONCE, Scene(times=1, text="first"), Scene(times=1, text="second"), Scene(text="third"))
        run = await doomed.start("one")
        line = {"thread_id": run.thread_id, "busy_policy": BusyPolicy.BUSY_POLICY_ENQUEUE}
        behind = [await doomed.start("two", **line), await other.start("three", **line)]
        watching = [asyncio.create_task(other.watch(each.id)) for each in behind]
        await asked(upstream, 1)
        process.kill()
        stories = [await other.tell(each.id) for each in (run, *behind)]
        assert [(story.run.attempt, story.text) for story in stories] == [(2, "first"), (1, "second"), (1, "third")]
        for events in await asyncio.gather(*watching):
            validate_stream(events)
        assert await other.texts(run.thread_id) == ["one", "first", "two", "second", "three", "third"]
        assert len(upstream.requests) == 4


async def test_watcher_on_an_api_replica_does_not_lose_its_stream_with_the_worker(
    open_doomed: OpenDoomed, open_replica: OpenReplica, upstream: ScriptedUpstream
) -> None:
    async with AsyncExitStack() as replicas:
        api = await replicas.enter_async_context(open_replica(server={"role": "api"}))
        _, process = await replicas.enter_async_context(open_doomed(server={"role": "worker"}))
        api.play(HELD_ONCE, FOUR_WORDS)
        run = await api.start()
        watching = asyncio.create_task(api.watch(run.id))
        await api.until_text(run.id, " w3")
        process.kill()
        await replicas.enter_async_context(open_doomed(server={"role": "worker"}))
        events = await asyncio.wait_for(watching, PATIENCE)
        story = await api.tell(run.id)
        check_agreement(events, story.events)
        assert (story.text, story.run.attempt) == ("w1 w2 w3 w4", 2)
        assert len(upstream.requests) == 2
