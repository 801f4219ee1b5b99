"""Servers that stop or die in the middle of runs, and those that come after them (contract 8, 11, 16, 29)."""

from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import WatchRunRequest
from famulus_server.embedded.upstream import Scene, ScriptedUpstream, ToolCall
from famulus_server.engine import facts
from famulus_server.engine.clock import SystemClock
from famulus_server.ports import Lease
from famulus_server.store.sqlite import SqliteStore
from killable_server import LEASE_SECONDS, open_killable
from run_stage import TOOLS, Stage, open_stage, stage_settings

pytestmark = pytest.mark.usefixtures("unhurried")

HELD = Scene(deltas=6, hold_after=3)
TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as opened:
        yield opened


async def seen_until_death(stage: Stage, run_id: str, process: Process) -> list[RunEvent]:
    """What a watcher sees of a run whose server is killed once there is text."""
    seen: list[RunEvent] = []

    async def watch() -> None:
        async for response in stage.runs.WatchRun(WatchRunRequest(run_id=run_id)):
            seen.extend(response.events)
            if seen[-1].HasField("text_delta"):
                process.kill()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return seen


async def test_runs_of_a_killed_server_go_on_and_their_text_counts_once(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_killable(tmp_path, upstream) as (doomed, process):
        doomed.play(TIME_CALLED, Scene(times=1, deltas=6, hold_after=3), Scene(deltas=4))
        assistant = await doomed.assistant(tools=TOOLS)
        waiting = await doomed.wait((await doomed.start(assistant_id=assistant.id)).id)
        run = await doomed.start()
        before = await seen_until_death(doomed, run.id, process)
        assert (await doomed.request_ended(2)).outcome == "disconnected"
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream) as stage:
        story = await stage.tell(run.id)
        assert story.text == "w1 w2 w3 w4"
        assert (story.run.state, story.run.attempt) == (RunState.RUN_STATE_COMPLETED, 2)
        # A client that lost its stream resumes it: what it sees then follows what it saw. Who comes anew may be shown a
        # Snapshot in place of how it began, which the killed server's Valkey took with it.
        after = await stage.watch(run.id, before[-1].sequence)
        resumed = next(event for event in after if event.HasField("attempt_started"))
        assert resumed.sequence == facts.sequence_base(2) + 1
        started = resumed.attempt_started
        assert (started.attempt, started.discards_after_sequence) == (2, 1)
        assert after[-1] == story.events[-1]
        assert await stage.texts(run.thread_id) == ["hello", "w1 w2 w3 w4"]
        assert len(upstream.requests) == 3

        assert await stage.get(waiting.id) == waiting
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
        answered = await stage.tell(waiting.id)
        assert answered.text == "w1 w2 w3 w4"
        assert answered.all("attempt_started") == []


async def test_run_on_which_three_servers_died_fails_as_worker_lost(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    run_id = ""
    for number in (1, 2, 3):
        async with open_killable(tmp_path, upstream) as (doomed, process):
            if not run_id:
                doomed.play(HELD)
                run_id = (await doomed.start()).id
            await upstream.wait_for_request(number, timeout=10 * LEASE_SECONDS)
            process.kill()
    async with open_stage(stage_settings(tmp_path, upstream.base_url), upstream) as stage:
        story = await stage.tell(run_id)
        assert (story.run.state, story.run.error.code) == (
            RunState.RUN_STATE_FAILED,
            RunErrorCode.RUN_ERROR_CODE_WORKER_LOST,
        )
        assert story.messages == []
        assert story.run.attempt == 4
        assert len(upstream.requests) == 3
        assert await stage.active_run(story.run.thread_id) == ""


async def test_server_that_stops_gives_its_runs_back_and_the_next_one_finishes_them(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    settings = stage_settings(tmp_path, upstream.base_url)
    async with open_stage(settings, upstream, [HELD]) as stage:
        run = await stage.start()
        await stage.until(run.id, "text_delta")
    assert (await upstream.wait_for_end(1)).outcome == "disconnected"
    async with open_stage(settings, upstream, [Scene(deltas=4)]) as stage:
        story = await stage.tell(run.id)
        assert (story.text, story.run.state) == ("w1 w2 w3 w4", RunState.RUN_STATE_COMPLETED)
        assert len(story.all("attempt_started")) == 1


async def test_restarts_do_not_count_as_failures_of_the_run(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url)
    run_id = ""
    for number in range(1, 6):
        async with open_stage(settings, upstream) as stage:
            if not run_id:
                stage.play(HELD)
                run_id = (await stage.start()).id
            await upstream.wait_for_request(number)
    async with open_stage(settings, upstream, [Scene(text="fine")]) as stage:
        story = await stage.tell(run_id)
        assert (story.text, story.run.attempt) == ("fine", 6)


async def test_server_that_stops_lets_short_runs_end(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url, server={"drain_seconds": 5.0})
    async with open_stage(settings, upstream, [Scene(deltas=6, pace_ms=20)]) as stage:
        run = await stage.start()
        await stage.until(run.id, "text_delta")
    async with open_stage(settings, upstream) as stage:
        story = await stage.tell(run.id)
        assert (story.run.state, story.run.attempt) == (RunState.RUN_STATE_COMPLETED, 1)


async def test_run_in_the_queue_survives_a_restart(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
    async with open_stage(settings, upstream, [HELD]) as stage:
        runs = [await stage.start() for _ in range(3)]
        await stage.request()
    async with open_stage(settings, upstream, [Scene(text="fine")]) as stage:
        for run in runs:
            assert (await stage.tell(run.id)).text == "fine"


async def test_second_turn_of_a_run_is_taken_over_without_repeating_the_first(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    settings = stage_settings(tmp_path, upstream.base_url)
    async with open_stage(settings, upstream, [TIME_CALLED, Scene(times=1, deltas=6, hold_after=3)]) as stage:
        assistant = await stage.assistant(tools=TOOLS)
        waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
        await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon"))
        await stage.until(waiting.id, "text_delta")
        second = stage.asked[1]["input"]
    async with open_stage(settings, upstream, [Scene(text="fine")]) as stage:
        story = await stage.tell(waiting.id)
        assert stage.asked[0]["input"] == second
        assert (story.text, story.run.turns) == ("fine", 2)
        assert [step.position for step in await stage.steps(waiting.id)] == [1, 2]
        [started] = story.all("attempt_started")
        assert started.discards_after_sequence == waiting.last_sequence + 3


async def test_run_that_was_about_to_be_cancelled_is_cancelled_by_the_next_server(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    settings = stage_settings(tmp_path, upstream.base_url)
    async with open_stage(settings, upstream, [HELD]) as stage:
        run = await stage.start()
        await stage.request()
    # As if that server had died right after it stored the wish.
    store = SqliteStore(path=settings.database, clock=SystemClock())
    await store.open()
    given_back = await store.read(lambda tx: tx.runs.get("default", run.id))
    given_back.state = RunState.RUN_STATE_CANCELLING
    nobody = Lease(owner="dead", seconds=0)
    await store.write(lambda tx: tx.runs.replace("default", given_back, attempt=given_back.attempt, lease=nobody))
    await store.close()
    async with open_stage(settings, upstream) as stage:
        assert (await stage.wait(run.id)).state == RunState.RUN_STATE_CANCELLED
        assert await stage.active_run(run.thread_id) == ""
        assert len(upstream.requests) == 1


async def test_run_that_expired_while_no_server_ran_ends_as_expired(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = stage_settings(tmp_path, upstream.base_url)
    async with open_stage(settings, upstream, [HELD]) as stage:
        run = await stage.start()
        await stage.request()
    store = SqliteStore(path=settings.database, clock=SystemClock())
    await store.open()
    given_back = await store.read(lambda tx: tx.runs.get("default", run.id))
    given_back.expire_time.CopyFrom(given_back.create_time)
    nobody = Lease(owner="dead", seconds=0)
    await store.write(lambda tx: tx.runs.replace("default", given_back, attempt=given_back.attempt, lease=nobody))
    await store.close()
    async with open_stage(settings, upstream) as stage:
        assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_EXPIRED
