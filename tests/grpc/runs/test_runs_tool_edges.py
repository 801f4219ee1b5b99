"""Runs with tools at their edges: quick callers, choices that cannot be, calls nobody will answer, prompts too long."""

import asyncio

import grpc
import pytest

from famulus.v1.run_pb2 import RunIncompleteReason, RunState
from famulus.v1.tool_pb2 import ToolChoice
from famulus_server.embedded.upstream import Match, Scene, ToolCall
from run_stage import TOOLS, Stage, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = Scene(times=1, tool_calls=(ToolCall(name="get_weather", arguments={"city": "Lisbon"}),))
ANSWER = Scene(match=Match(tool_outputs=True), text="So: ", quote_outputs=True)


async def test_wait_answers_only_with_a_run_that_has_stopped(stage: Stage) -> None:
    """However quick somebody else is with the outputs."""
    assistant = await stage.assistant(tools=TOOLS)
    for _ in range(40):
        stage.play(CALL, ANSWER)
        run = await stage.start(assistant_id=assistant.id)
        waiting = [asyncio.create_task(stage.wait(run.id)) for _ in range(3)]
        first = await stage.wait(run.id)
        if first.state == RunState.RUN_STATE_REQUIRES_ACTION:
            await stage.submit(run.id, (first.required_action.tool_calls[0].id, "sunny"))
        stopped = (RunState.RUN_STATE_REQUIRES_ACTION, RunState.RUN_STATE_COMPLETED)
        assert all(other.state in stopped for other in await asyncio.gather(*waiting))
        await stage.tell(run.id)


async def test_chosen_function_must_be_one_of_the_run(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    refusal = await refused(stage.start(assistant_id=assistant.id, tool_choice=ToolChoice(function_name="missing")))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert not stage.asked


async def test_steps_that_nobody_will_finish_tell_when_they_ended(stage: Stage) -> None:
    stage.play(CALL)
    assistant = await stage.assistant(tools=TOOLS)
    story = await stage.play_out(assistant_id=assistant.id, max_turns=1)
    assert story.run.state == RunState.RUN_STATE_INCOMPLETE
    [step] = await stage.steps(story.run.id)
    assert step.HasField("end_time")


async def test_run_whose_tool_outputs_do_not_fit_the_model_ends_incomplete(stage: Stage) -> None:
    stage.play(CALL, ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    await stage.submit(waiting.id, (waiting.required_action.tool_calls[0].id, "x" * 500_000))
    story = await stage.tell(waiting.id)
    assert story.run.state == RunState.RUN_STATE_INCOMPLETE
    assert story.run.incomplete_reason == RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_PROMPT_TOKENS
    assert len(stage.asked) == 1
