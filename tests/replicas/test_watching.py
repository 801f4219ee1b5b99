"""Watching a run through a replica that does not execute it."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from famulus.v1.run_pb2 import RunState
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus_server.embedded.upstream import Scene, ToolCall
from replicas.conftest import OpenReplica
from run_stage import TOOLS, Stage, refused
from validator import validate_stream

TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica) -> AsyncIterator[tuple[Stage, Stage]]:
    async with open_replica() as here, open_replica() as there:
        yield here, there


async def test_watcher_elsewhere_sees_every_event_as_it_comes(pair: tuple[Stage, Stage]) -> None:
    here, there = pair
    here.play(Scene(deltas=20, hold_after=10))
    run = await here.start()
    seen = await there.until_text(run.id, " w10")
    assert sum(event.HasField("text_delta") for event in seen) == 10
    watching = asyncio.create_task(there.watch(run.id))
    (await here.request()).released.set()
    events = await watching
    validate_stream(events)
    assert events == await here.watch(run.id)
    assert "snapshot" not in [event.WhichOneof("event") for event in events]


async def test_run_is_cancelled_through_any_replica(pair: tuple[Stage, Stage]) -> None:
    here, there = pair
    here.play(Scene(deltas=20, hold_after=10))
    run = await here.start()
    await here.until(run.id, "text_delta")
    assert (await there.cancel(run.id)).state == RunState.RUN_STATE_CANCELLING
    story = await there.tell(run.id)
    assert story.run.state == RunState.RUN_STATE_CANCELLED
    assert (await here.request_ended()).outcome == "disconnected"


async def test_thread_is_deleted_through_any_replica_and_its_watchers_are_told(pair: tuple[Stage, Stage]) -> None:
    here, there = pair
    here.play(Scene(deltas=20, hold_after=10))
    run = await here.start()
    await here.until(run.id, "text_delta")
    watching = [asyncio.create_task(refused(stage.watch(run.id))) for stage in pair]
    await asyncio.gather(*(stage.until(run.id, "text_delta") for stage in pair))
    await there.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
    refusals = await asyncio.gather(*watching)
    assert [refusal.reason for refusal in refusals] == ["THREAD_DELETED"] * 2
    assert (await here.request_ended()).outcome == "disconnected"


async def test_tools_are_answered_through_another_replica_which_goes_on_with_the_run(
    pair: tuple[Stage, Stage],
) -> None:
    here, there = pair
    here.play(TIME_CALLED, Scene(text="noon"))
    run = await here.start(assistant_id=(await here.assistant(tools=TOOLS)).id)
    watching = [asyncio.create_task(stage.watch(run.id)) for stage in pair]
    waiting = await there.wait(run.id)
    await there.submit(run.id, (waiting.required_action.tool_calls[0].id, "12:00"))
    first, second = await asyncio.gather(*watching)
    validate_stream(first)
    assert first == second
    assert "snapshot" not in [event.WhichOneof("event") for event in first]
    assert (await here.get(run.id)).state == RunState.RUN_STATE_COMPLETED
