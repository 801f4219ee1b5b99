"""Function tools: the run waits, the caller answers, the model goes on."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration

from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import WaitRunRequest
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.tool_pb2 import FunctionCallProblem, ToolChoice, ToolChoiceMode, ToolOutput
from famulus_server.embedded.upstream import Fault, Match, Scene, ToolCall
from run_stage import TOOLS, Stage, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = ToolCall(name="get_weather", arguments={"city": "Lisbon"})
TIME = ToolCall(name="get_time")
ANSWER = Scene(match=Match(tool_outputs=True), text="So: ", quote_outputs=True)


def calling(*calls: ToolCall, times: int = 1) -> Scene:
    return Scene(times=times, tool_calls=calls)


async def start_waiting(stage: Stage, *calls: ToolCall, rest: Sequence[Scene] = (ANSWER,), **fields: Any) -> Run:
    """A run that waits for the outputs of these calls."""
    stage.play(calling(*calls), *rest)
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.wait((await stage.start(assistant_id=assistant.id, **fields)).id)
    assert run.state == RunState.RUN_STATE_REQUIRES_ACTION
    return run


def open_ids(run: Run) -> list[str]:
    return [call.id for call in run.required_action.tool_calls]


def outputs_sent(body: dict[str, Any]) -> dict[str, str]:
    return {item["call_id"]: item["output"] for item in body["input"] if item.get("type") == "function_call_output"}


async def test_run_waits_for_the_output_of_a_call_and_goes_on_with_it(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    [call] = waiting.required_action.tool_calls
    assert (call.function.name, json.loads(call.function.arguments_json)) == ("get_weather", {"city": "Lisbon"})
    going_on = await stage.submit(waiting.id, (call.id, "sunny"))
    assert going_on.state in (RunState.RUN_STATE_IN_PROGRESS, RunState.RUN_STATE_QUEUED)
    story = await stage.tell(waiting.id)
    assert story.text == "So: sunny"
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    assert not story.run.HasField("required_action")
    assert story.states == [
        RunState.RUN_STATE_IN_PROGRESS,
        RunState.RUN_STATE_REQUIRES_ACTION,
        RunState.RUN_STATE_IN_PROGRESS,
        RunState.RUN_STATE_COMPLETED,
    ]
    assert (story.run.turns, story.run.attempt) == (2, 2)
    assert outputs_sent(stage.asked[1]) == {call.id: "sunny"}


async def test_calls_and_outputs_are_kept_in_the_step(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    [step] = await stage.steps(waiting.id)
    assert step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS
    await stage.submit(waiting.id, (open_ids(waiting)[0], "sunny"))
    await stage.tell(waiting.id)
    tools, message = await stage.steps(waiting.id)
    assert (tools.position, tools.turn, message.position, message.turn) == (1, 1, 2, 2)
    assert tools.state == RunStepState.RUN_STEP_STATE_COMPLETED
    assert [call.function.output for call in tools.tool_calls.tool_calls] == ["sunny"]
    assert tools.id == step.id


async def test_waiting_run_holds_no_connection_to_the_model(stage: Stage) -> None:
    await start_waiting(stage, WEATHER)
    assert (await stage.request_ended()).outcome == "completed"


async def test_wait_returns_when_the_run_needs_action(stage: Stage) -> None:
    stage.play(Scene(text="Let me see. ", tool_calls=(WEATHER,)))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    answer = await stage.runs.WaitRun(WaitRunRequest(run_id=run.id))
    assert answer.run.state == RunState.RUN_STATE_REQUIRES_ACTION
    assert [message.content[0].text.text for message in answer.messages] == ["Let me see. "]


async def test_parallel_calls_are_answered_together_in_any_order(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER, TIME, WEATHER)
    ids = open_ids(waiting)
    assert len(set(ids)) == 3
    await stage.submit(waiting.id, (ids[2], "c"), (ids[0], "a"), (ids[1], "b"))
    assert (await stage.tell(waiting.id)).text == "So: a\nb\nc"
    assert outputs_sent(stage.asked[1]) == dict(zip(ids, "abc", strict=True))


async def test_several_rounds_of_calls(stage: Stage) -> None:
    stage.play(calling(TIME, times=3), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    for number in range(3):
        waiting = await stage.wait(run.id)
        await stage.submit(run.id, (open_ids(waiting)[0], str(number)))
    story = await stage.tell(run.id)
    assert story.run.turns == 4
    assert list(outputs_sent(stage.asked[3]).values()) == ["0", "1", "2"]
    assert [step.position for step in await stage.steps(run.id)] == [1, 2, 3, 4]


async def test_usage_adds_up_over_turns(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    await stage.submit(waiting.id, (open_ids(waiting)[0], "sunny"))
    run = (await stage.tell(waiting.id)).run
    steps = await stage.steps(run.id)
    assert sum(step.usage.total_tokens for step in steps) == run.usage.total_tokens
    assert run.usage.prompt_tokens > waiting.usage.prompt_tokens > 0


async def test_some_outputs_only_are_refused_and_change_nothing(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER, TIME)
    first, second = open_ids(waiting)
    refusal = await refused(stage.submit(waiting.id, (first, "sunny")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOOL_OUTPUTS_INCOMPLETE")
    assert refusal.metadata["call_ids"] == second
    assert await stage.get(waiting.id) == waiting
    await stage.submit(waiting.id, (first, "sunny"), (second, "noon"))
    assert (await stage.tell(waiting.id)).text == "So: sunny\nnoon"


async def test_refusal_of_some_outputs_names_missing_calls_with_long_ids(stage: Stage) -> None:
    calls = [ToolCall(name="get_time", id=f"{number:0128d}") for number in range(128)]
    waiting = await start_waiting(stage, *calls)
    assert open_ids(waiting) == [call.id for call in calls]
    refusal = await refused(stage.submit(waiting.id, (open_ids(waiting)[0], "x")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOOL_OUTPUTS_INCOMPLETE")
    assert open_ids(waiting)[1] in refusal.metadata["call_ids"]
    await stage.cancel(waiting.id)


async def test_output_of_a_foreign_call_is_refused_and_changes_nothing(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    refusal = await refused(stage.submit(waiting.id, (open_ids(waiting)[0], "sunny"), ("call_foreign", "x")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOOL_CALL")
    assert refusal.metadata["call_id"] == "call_foreign"
    assert await stage.get(waiting.id) == waiting
    await stage.cancel(waiting.id)


async def test_same_outputs_twice_are_harmless(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    output = (open_ids(waiting)[0], "sunny")
    await stage.submit(waiting.id, output)
    await stage.submit(waiting.id, output)
    story = await stage.tell(waiting.id)
    assert (await stage.submit(waiting.id, output)) == story.run
    assert len(story.all("tool_output_received")) == 1
    assert len(stage.asked) == 2


async def test_same_outputs_at_once_count_once(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    output = (open_ids(waiting)[0], "sunny")
    await asyncio.gather(*(stage.submit(waiting.id, output) for _ in range(16)))
    story = await stage.tell(waiting.id)
    assert len(story.all("tool_output_received")) == 1
    assert len(stage.asked) == 2


async def test_same_outputs_are_harmless_even_after_the_run_asked_for_others(stage: Stage) -> None:
    stage.play(calling(TIME, times=2), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    first = (open_ids(await stage.wait(run.id))[0], "one")
    await stage.submit(run.id, first)
    waiting = await stage.wait(run.id)
    assert await stage.submit(run.id, first) == waiting
    other = await refused(stage.submit(run.id, (first[0], "another")))
    assert other.reason == "TOOL_OUTPUT_CONFLICT"
    await stage.submit(run.id, (open_ids(waiting)[0], "two"))
    assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_COMPLETED


async def test_other_outputs_for_an_answered_call_conflict(stage: Stage) -> None:
    held = msgspec.structs.replace(ANSWER, hold_after=0)
    waiting = await start_waiting(stage, WEATHER, rest=[held])
    call_id = open_ids(waiting)[0]
    await stage.submit(waiting.id, (call_id, "sunny"))
    asked = await stage.request(2)
    refusal = await refused(stage.submit(waiting.id, (call_id, "rainy")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOOL_OUTPUT_CONFLICT")
    assert refusal.metadata["call_id"] == call_id
    asked.released.set()
    assert (await stage.tell(waiting.id)).text == "So: sunny"
    late = await refused(stage.submit(waiting.id, (call_id, "rainy")))
    assert late.reason == "TOOL_OUTPUT_CONFLICT"


async def test_outputs_for_a_run_that_asked_for_none_are_refused(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    story = await stage.play_out()
    refusal = await refused(stage.submit(story.run.id, ("call_1", "x")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_WAITING")
    assert refusal.metadata["state"] == "RUN_STATE_COMPLETED"


async def test_outputs_after_the_run_expired_are_refused_as_late(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER, ttl=Duration(seconds=1))
    story = await stage.tell(waiting.id)
    assert story.run.state == RunState.RUN_STATE_EXPIRED
    [step] = await stage.steps(waiting.id)
    assert step.state == RunStepState.RUN_STEP_STATE_EXPIRED
    refusal = await refused(stage.submit(waiting.id, (open_ids(waiting)[0], "sunny")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_EXPIRED")
    assert len(stage.asked) == 1


async def test_error_outputs_are_told_to_the_model_as_such(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    call_id = open_ids(waiting)[0]
    await stage.submit(waiting.id, ToolOutput(call_id=call_id, output="no such city", is_error=True))
    await stage.tell(waiting.id)
    assert json.loads(outputs_sent(stage.asked[1])[call_id]) == {"error": "no such city"}
    [call] = (await stage.steps(waiting.id))[0].tool_calls.tool_calls
    assert (call.function.output, call.function.output_is_error) == ("no such city", True)


async def test_empty_output_is_an_output(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER)
    await stage.submit(waiting.id, (open_ids(waiting)[0], ""))
    assert (await stage.tell(waiting.id)).run.state == RunState.RUN_STATE_COMPLETED
    assert outputs_sent(stage.asked[1]) == {open_ids(waiting)[0]: ""}


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (
            ToolCall(name="get_time", arguments='{"broken": '),
            FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON,
        ),
        (ToolCall(name="get_time", arguments="[1]"), FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON),
        (ToolCall(name="no_such"), FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNKNOWN_FUNCTION),
    ],
)
async def test_call_with_a_problem_is_flagged_and_answered_without_the_caller(
    stage: Stage, call: ToolCall, problem: "FunctionCallProblem.ValueType"
) -> None:
    stage.play(calling(call), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    story = await stage.play_out(assistant_id=assistant.id)
    assert RunState.RUN_STATE_REQUIRES_ACTION not in story.states
    [made] = (await stage.steps(story.run.id))[0].tool_calls.tool_calls
    assert (made.function.arguments_json, made.function.problem) == (call.arguments, problem)
    assert made.function.output_is_error
    assert "error" in json.loads(outputs_sent(stage.asked[1])[made.id])
    assert story.run.state == RunState.RUN_STATE_COMPLETED


async def test_caller_is_asked_for_the_good_calls_among_bad_ones(stage: Stage) -> None:
    bad = ToolCall(name="get_time", arguments="nonsense")
    waiting = await start_waiting(stage, bad, WEATHER, ToolCall(name="no_such"))
    [call_id] = open_ids(waiting)
    await stage.submit(waiting.id, (call_id, "sunny"))
    await stage.tell(waiting.id)
    sent = outputs_sent(stage.asked[1])
    assert len(sent) == 3
    assert sent.pop(call_id) == "sunny"
    assert all("error" in json.loads(output) for output in sent.values())


async def test_thousand_calls_are_capped_and_the_model_is_told(stage: Stage) -> None:
    waiting = await start_waiting(stage, ToolCall(name="get_time", repeat=1_000), model="roomy")
    ids = open_ids(waiting)
    assert len(ids) == 128
    await stage.submit(waiting.id, *((call_id, "noon") for call_id in ids))
    story = await stage.tell(waiting.id)
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    sent = outputs_sent(stage.asked[1])
    assert len(sent) == 1_000
    assert sum("error" in output for output in sent.values()) == 872
    [step, _] = await stage.steps(waiting.id)
    problems = [call.function.problem for call in step.tool_calls.tool_calls]
    assert problems.count(FunctionCallProblem.FUNCTION_CALL_PROBLEM_TOO_MANY_CALLS) == 872


async def test_duplicate_call_ids_are_told_apart(stage: Stage) -> None:
    waiting = await start_waiting(stage, ToolCall(name="get_time", id="call_1", repeat=2))
    first, second = open_ids(waiting)
    assert first == "call_1"
    assert second != first
    await stage.submit(waiting.id, (first, "one"), (second, "two"))
    assert (await stage.tell(waiting.id)).text == "So: one\ntwo"


async def test_call_id_that_an_earlier_turn_used_is_told_apart(stage: Stage) -> None:
    stage.play(calling(ToolCall(name="get_time", id="call_1"), times=2), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start(assistant_id=assistant.id)
    ids = []
    for output in ("one", "two"):
        ids += open_ids(await stage.wait(run.id))
        await stage.submit(run.id, (ids[-1], output))
    assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_COMPLETED
    assert outputs_sent(stage.asked[2]) == {ids[0]: "one", ids[1]: "two"}


async def test_call_keeps_its_id_when_the_turn_had_to_start_over(stage: Stage) -> None:
    call = ToolCall(name="get_time", id="call_mine", arguments={"some": "longer argument, in several pieces"})
    stage.play(Scene(times=1, tool_calls=(call,), fault=Fault(kind="reset", after=2)), calling(call), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    waiting = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    assert open_ids(waiting) == ["call_mine"]
    await stage.submit(waiting.id, ("call_mine", "noon"))
    assert len((await stage.tell(waiting.id)).all("attempt_started")) == 1


async def test_lone_surrogate_in_arguments_does_no_harm(stage: Stage) -> None:
    stage.play(calling(ToolCall(name="get_time", arguments='{"text": "\\ud800"}')), ANSWER)
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.wait((await stage.start(assistant_id=assistant.id)).id)
    if run.state == RunState.RUN_STATE_REQUIRES_ACTION:
        await stage.submit(run.id, (open_ids(run)[0], "ok"))
    assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_COMPLETED


async def test_lone_surrogate_in_text_does_no_harm(stage: Stage) -> None:
    stage.play(Scene(deltas=3, fault=Fault(kind="lone_surrogate")))
    story = await stage.play_out()
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    assert story.text


@pytest.mark.parametrize(
    "choice",
    [
        ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED),
        ToolChoice(function_name="get_time"),
    ],
)
async def test_forced_tool_choice_holds_for_the_first_turn_only(stage: Stage, choice: ToolChoice) -> None:
    waiting = await start_waiting(stage, TIME, tool_choice=choice)
    await stage.submit(waiting.id, (open_ids(waiting)[0], "noon"))
    await stage.tell(waiting.id)
    first, second = (body.get("tool_choice", "auto") for body in stage.asked)
    assert first in ("required", {"type": "function", "name": "get_time"})
    assert second == "auto"


async def test_tool_choice_none_holds_for_every_turn(stage: Stage) -> None:
    choice = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
    waiting = await start_waiting(stage, TIME, tool_choice=choice)
    await stage.submit(waiting.id, (open_ids(waiting)[0], "noon"))
    await stage.tell(waiting.id)
    assert [body["tool_choice"] for body in stage.asked] == ["none", "none"]


async def test_tools_work_on_a_chat_model(stage: Stage) -> None:
    waiting = await start_waiting(stage, WEATHER, TIME, model="chat")
    first, second = open_ids(waiting)
    await stage.submit(waiting.id, (first, "sunny"), (second, "noon"))
    assert (await stage.tell(waiting.id)).text == "So: sunny\nnoon"
    told = {item["tool_call_id"]: item["content"] for item in stage.asked[1]["messages"] if item["role"] == "tool"}
    assert told == {first: "sunny", second: "noon"}


async def test_built_in_calls_are_kept_and_not_waited_for(stage: Stage) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}}
    stage.play(Scene(text="found", items=(search,)))
    story = await stage.play_out()
    assert story.run.state == RunState.RUN_STATE_COMPLETED
    calls = [call for step in await stage.steps(story.run.id) for call in step.tool_calls.tool_calls]
    assert [call.built_in.type for call in calls] == ["web_search_call"]
    assert json.loads(calls[0].built_in.details_json)["action"] == {"query": "q"}
