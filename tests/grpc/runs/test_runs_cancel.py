"""Ending a run from outside: cancel, disconnect, deletion of the thread."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from famulus.v1.message_pb2 import MessageIncompleteReason, MessageState
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import StreamRunRequest, WaitRunRequest, WatchRunRequest
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus_server.embedded.upstream import Fault, Scene, ScriptedUpstream, ToolCall
from run_stage import TOOLS, Stage, Story, open_stage, refused, stage_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = Scene(deltas=6, hold_after=3)
STOPPED = RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED


def assert_cancelled(story: Story) -> None:
    assert story.run.state == RunState.RUN_STATE_CANCELLED
    assert sum(state in (RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_CANCELLED) for state in story.states) == 1
    assert not story.run.HasField("error")


async def delete(stage: Stage, thread_id: str) -> None:
    await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=thread_id))


async def test_cancel_stops_the_model_and_keeps_what_it_wrote(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    await stage.until(run.id, "text_delta")
    assert (await stage.cancel(run.id)).state in STOPPED
    assert (await stage.request_ended()).outcome == "disconnected"
    story = await stage.tell(run.id)
    assert_cancelled(story)
    assert story.states[-2:] == list(STOPPED)
    [kept] = story.messages
    assert kept.content[0].text.text.split() == ["w1", "w2", "w3"]
    assert kept.state == MessageState.MESSAGE_STATE_INCOMPLETE
    assert kept.incomplete_reason == MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED
    [step] = await stage.steps(run.id)
    assert step.state == RunStepState.RUN_STEP_STATE_CANCELLED
    assert await stage.active_run(run.thread_id) == ""


async def test_cancel_before_the_first_word_leaves_no_message(stage: Stage) -> None:
    stage.play(Scene(fault=Fault(kind="hang_before_response")))
    run = await stage.start()
    await stage.request()
    await stage.cancel(run.id)
    story = await stage.tell(run.id)
    assert_cancelled(story)
    assert story.messages == []
    assert (await stage.request_ended()).outcome == "disconnected"


async def test_cancel_while_a_retry_is_waited_for_takes_effect_at_once(stage: Stage) -> None:
    patient = {"retry-after-ms": "30000"}
    stage.play(Scene(fault=Fault(kind="status", status=429, headers=patient)))
    run = await stage.start()
    await stage.until(run.id, "retry_scheduled")
    await stage.cancel(run.id)
    assert_cancelled(await stage.tell(run.id))
    assert len(stage.asked) == 1


async def test_cancel_of_a_waiting_run_closes_its_calls(stage: Stage) -> None:
    stage.play(Scene(tool_calls=(ToolCall(name="get_time"),)))
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    assert (await stage.cancel(waiting.id)).state == RunState.RUN_STATE_CANCELLED
    story = await stage.tell(waiting.id)
    assert_cancelled(story)
    assert not story.run.HasField("required_action")
    [step] = await stage.steps(waiting.id)
    assert step.state == RunStepState.RUN_STEP_STATE_CANCELLED
    late = await refused(stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "noon")))
    assert late.reason == "RUN_NOT_WAITING"
    assert late.metadata["state"] == "RUN_STATE_CANCELLED"


async def test_cancel_repeated_answers_with_the_state_that_holds(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    await stage.until(run.id, "text_delta")
    answers = await asyncio.gather(*(stage.cancel(run.id) for _ in range(16)))
    assert {answer.state for answer in answers} <= set(STOPPED)
    story = await stage.tell(run.id)
    assert_cancelled(story)
    assert await stage.cancel(run.id) == story.run


async def test_cancel_after_the_end_changes_nothing(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    assert await stage.cancel(story.run.id) == story.run
    assert (await stage.tell(story.run.id)).states == story.states


async def test_cancelled_thread_takes_the_next_run(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    await stage.until(run.id, "text_delta")
    await stage.cancel(run.id)
    await stage.wait(run.id)
    stage.play(Scene(text="fine"))
    story = await stage.play_out("again", thread_id=run.thread_id)
    assert story.text == "fine"
    seen = [item["content"][0]["text"].strip() for item in stage.asked[0]["input"]]
    assert seen == ["hello", "w1 w2 w3", "again"]


async def test_cancel_and_completion_never_both_happen(stage: Stage) -> None:
    stage.play(Scene(deltas=3, pace_ms=1))

    async def race(number: int) -> Story:
        run = await stage.start()
        # Cancels are spread over the run's few milliseconds.
        for _ in range(number % 8):
            await stage.get(run.id)
        answer = await stage.cancel(run.id)
        story = await stage.tell(run.id)
        if answer.state in STOPPED:
            assert_cancelled(story)
        else:
            assert (answer.state, story.run.state) == (RunState.RUN_STATE_COMPLETED,) * 2
        assert await stage.active_run(run.thread_id) == ""
        return story

    ended: list[Story] = []
    for _ in range(20):
        ended += await asyncio.gather(*map(race, range(10)))
    states = [story.run.state for story in ended]
    assert len(states) == 200
    assert set(states) <= {RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_COMPLETED}
    assert states.count(RunState.RUN_STATE_CANCELLED) > 0
    for story in ended:
        for message in story.messages:
            whole = story.run.state == RunState.RUN_STATE_COMPLETED
            assert (message.state == MessageState.MESSAGE_STATE_COMPLETED) == whole


async def first_delta(call: Any) -> str:
    """Reads until there is text; returns the id of the run."""
    run_id = ""
    async for response in call:
        for event in response.events:
            if event.HasField("run_state_changed"):
                run_id = event.run_state_changed.run.id
            if event.HasField("text_delta"):
                return run_id
    raise AssertionError("no text")


@pytest.mark.parametrize("method", ["StreamRun", "WatchRun"])
async def test_run_is_cancelled_with_its_watcher_if_that_asked_for_it(stage: Stage, method: str) -> None:
    stage.play(HELD)
    call: Any
    if method == "StreamRun":
        call = stage.runs.StreamRun(StreamRunRequest(create=await stage.wanted(), cancel_on_disconnect=True))
    else:
        run = await stage.start()
        call = stage.runs.WatchRun(WatchRunRequest(run_id=run.id, cancel_on_disconnect=True))
    run_id = await first_delta(call)
    call.cancel()
    assert (await stage.request_ended()).outcome == "disconnected"
    assert_cancelled(await stage.tell(run_id))


@pytest.mark.parametrize("method", ["StreamRun", "WatchRun"])
async def test_run_goes_on_without_its_watcher(stage: Stage, method: str) -> None:
    stage.play(HELD)
    call: Any
    if method == "StreamRun":
        call = stage.runs.StreamRun(StreamRunRequest(create=await stage.wanted()))
    else:
        call = stage.runs.WatchRun(WatchRunRequest(run_id=(await stage.start()).id))
    run_id = await first_delta(call)
    call.cancel()
    (await stage.request()).released.set()
    story = await stage.tell(run_id)
    assert (story.run.state, story.text) == (RunState.RUN_STATE_COMPLETED, "w1 w2 w3 w4 w5 w6")


async def test_watcher_that_sees_the_end_cancels_nothing(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted()
    request = StreamRunRequest(create=create, cancel_on_disconnect=True)
    events = [event async for response in stage.runs.StreamRun(request) for event in response.events]
    assert events[-1].run_state_changed.run.state == RunState.RUN_STATE_COMPLETED


async def test_deleting_a_thread_stops_its_run_and_ends_its_watchers(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    watching = asyncio.create_task(refused(stage.watch(run.id)))
    waiting = asyncio.create_task(refused(stage.wait(run.id)))
    await stage.until(run.id, "text_delta")
    await delete(stage, run.thread_id)
    assert (await stage.request_ended()).outcome == "disconnected"
    assert (await watching).code is grpc.StatusCode.NOT_FOUND
    assert (await waiting).code is grpc.StatusCode.NOT_FOUND
    for call in (stage.get(run.id), stage.watch(run.id), stage.cancel(run.id), stage.steps(run.id)):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
    assert (await refused(stage.messages(run.thread_id))).code is grpc.StatusCode.NOT_FOUND


async def test_deleting_a_thread_ends_a_waiting_run(stage: Stage) -> None:
    stage.play(Scene(tool_calls=(ToolCall(name="get_time"),)))
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    watching = asyncio.create_task(refused(stage.watch(waiting.id, waiting.last_sequence)))
    await delete(stage, waiting.thread_id)
    assert (await watching).code is grpc.StatusCode.NOT_FOUND
    call_id = waiting.required_action.tool_calls[0].id
    assert (await refused(stage.submit(waiting.id, (call_id, "x")))).code is grpc.StatusCode.NOT_FOUND


async def test_deletion_cancel_and_completion_at_once_leave_nothing(stage: Stage) -> None:
    stage.play(Scene(deltas=3, pace_ms=1))

    async def race(number: int) -> str:
        run = await stage.start()
        for _ in range(number % 6):
            await stage.get(run.id)
        cancelling = [asyncio.create_task(stage.cancel(run.id))] if number % 2 else []
        await asyncio.gather(delete(stage, run.thread_id), *cancelling, return_exceptions=True)
        watched = stage.runs.WatchRun(WatchRunRequest(run_id=run.id))
        assert (await refused(anext(aiter(watched)))).code is grpc.StatusCode.NOT_FOUND
        return run.id

    for _ in range(5):
        await asyncio.gather(*map(race, range(10)))
    stage.play(Scene(text="fine"))
    assert (await stage.play_out()).text == "fine"


async def test_run_that_waits_for_a_slot_can_be_cancelled(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = stage_settings(tmp_path, upstream.base_url, worker={"slots": 1})
        async with open_stage(settings, upstream, [HELD]) as stage:
            first = await stage.start()
            await stage.until(first.id, "text_delta")
            second = await stage.start()
            assert second.state == RunState.RUN_STATE_QUEUED
            assert (await stage.cancel(second.id)).state == RunState.RUN_STATE_CANCELLED
            story = await stage.tell(second.id)
            assert story.states == [RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_CANCELLED]
            (await stage.request()).released.set()
            assert (await stage.tell(first.id)).run.state == RunState.RUN_STATE_COMPLETED
            assert len(stage.asked) == 1


async def test_deadline_of_a_wait_does_not_touch_the_run(stage: Stage) -> None:
    stage.play(HELD)
    run = await stage.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.runs.WaitRun(WaitRunRequest(run_id=run.id), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (await stage.request()).released.set()
    assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_COMPLETED
