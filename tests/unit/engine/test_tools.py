"""Function calls: what is wrong with them, and what outputs do to them."""

import json

import pytest

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import RunStep, ToolCallBatch
from famulus.v1.tool_pb2 import (
    CodeInterpreterTool,
    FunctionCall,
    FunctionCallProblem,
    FunctionTool,
    Tool,
    ToolCall,
    ToolOutput,
)
from famulus_server.engine import tools
from famulus_server.errors import FailedPrecondition, FamulusError, InvalidArgument

NONE = FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNSPECIFIED
NOT_JSON = FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON
UNKNOWN = FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNKNOWN_FUNCTION
TOO_MANY = FunctionCallProblem.FUNCTION_CALL_PROBLEM_TOO_MANY_CALLS
WAITING = Run(state=RunState.RUN_STATE_REQUIRES_ACTION)


def step_with(*calls: ToolCall) -> RunStep:
    return RunStep(tool_calls=ToolCallBatch(tool_calls=calls))


def open_call(call_id: str) -> ToolCall:
    return ToolCall(id=call_id, function=FunctionCall(name="f", arguments_json="{}"))


def answered(call_id: str, output: str) -> ToolCall:
    return ToolCall(id=call_id, function=FunctionCall(name="f", arguments_json="{}", output=output))


def output(call_id: str, text: str = "x", *, is_error: bool = False) -> ToolOutput:
    return ToolOutput(call_id=call_id, output=text, is_error=is_error)


@pytest.mark.parametrize(
    ("name", "arguments", "position", "problem"),
    [
        ("f", "{}", 0, NONE),
        ("f", ' {"a": [1, 2.5, null]} ', 127, NONE),
        ("f", "", 0, NOT_JSON),
        ("f", "null", 0, NOT_JSON),
        ("f", '"text"', 0, NOT_JSON),
        ("f", '{"a": 1', 0, NOT_JSON),
        ("f", '{"a": NaN}', 0, NOT_JSON),
        # JSON as such, but nothing that a caller's parser should have to meet.
        ("f", '{"n": ' + "9" * 5_000 + "}", 0, NOT_JSON),
        ("f", "[" * 100_000, 0, NOT_JSON),
        ("f", '{"a":' * 100_000, 0, NOT_JSON),
        ("g", "{}", 0, UNKNOWN),
        ("", "{}", 0, UNKNOWN),
        ("g", "nonsense", 0, UNKNOWN),
        ("f", "{}", 128, TOO_MANY),
    ],
)
def test_problem_of_a_call(name: str, arguments: str, position: int, problem: "FunctionCallProblem.ValueType") -> None:
    assert tools.find_problem(name, arguments, position=position, functions=frozenset({"f"})) == problem


@pytest.mark.parametrize("problem", [NOT_JSON, UNKNOWN, TOO_MANY])
def test_every_problem_has_an_answer_for_the_model(problem: "FunctionCallProblem.ValueType") -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", problem=problem))
    assert tools.is_open(call)
    tools.answer_problem(call)
    assert not tools.is_open(call)
    item = tools.output_item(call)
    assert (item["type"], item["call_id"]) == ("function_call_output", "c")
    assert set(json.loads(item["output"])) == {"error"}


def test_function_names_leave_built_in_tools_out() -> None:
    built_in = Tool(code_interpreter=CodeInterpreterTool())
    assert tools.function_names([Tool(function=FunctionTool(name="f")), built_in]) == {"f"}


def test_outputs_of_all_open_calls_are_written_into_them() -> None:
    step = step_with(open_call("a"), answered("b", "by the service"), open_call("c"))
    assert tools.apply_outputs(WAITING, [step], [output("c", "3"), output("a", "1", is_error=True)])
    assert [call.function.output for call in step.tool_calls.tool_calls] == ["1", "by the service", "3"]
    assert [call.function.output_is_error for call in step.tool_calls.tool_calls] == [True, False, False]


def test_same_outputs_again_change_nothing_whatever_the_state() -> None:
    for state in RunState.values():
        old, new = step_with(answered("a", "1")), step_with(open_call("b"))
        assert not tools.apply_outputs(Run(state=state), [old, new], [output("a", "1")])
        assert tools.is_open(new.tool_calls.tool_calls[0])


@pytest.mark.parametrize(
    ("outputs", "kind", "reason"),
    [
        ([output("a")], InvalidArgument, reasons.ERROR_REASON_TOOL_OUTPUTS_INCOMPLETE),
        ([output("a"), output("b"), output("z")], InvalidArgument, reasons.ERROR_REASON_UNKNOWN_TOOL_CALL),
        ([output("a"), output("b"), output("old", "2")], FailedPrecondition, reasons.ERROR_REASON_TOOL_OUTPUT_CONFLICT),
        ([output("old", "1", is_error=True)], FailedPrecondition, reasons.ERROR_REASON_TOOL_OUTPUT_CONFLICT),
    ],
)
def test_refused_outputs_change_nothing(
    outputs: list[ToolOutput], kind: type[FamulusError], reason: "reasons.ErrorReason.ValueType"
) -> None:
    steps = [step_with(answered("old", "1")), step_with(open_call("a"), open_call("b"))]
    before = [step.SerializeToString() for step in steps]
    with pytest.raises(kind) as caught:
        tools.apply_outputs(WAITING, steps, outputs)
    assert caught.value.reason == reason
    assert [step.SerializeToString() for step in steps] == before


def test_outputs_for_open_calls_of_a_run_that_does_not_wait_are_refused() -> None:
    for state in set(RunState.values()) - {RunState.RUN_STATE_REQUIRES_ACTION}:
        with pytest.raises(FailedPrecondition) as caught:
            tools.apply_outputs(Run(state=state), [step_with(open_call("a"))], [output("a")])
        expired = state == RunState.RUN_STATE_EXPIRED
        wanted = reasons.ERROR_REASON_RUN_EXPIRED if expired else reasons.ERROR_REASON_RUN_NOT_WAITING
        assert caught.value.reason == wanted


def test_outputs_for_a_run_without_calls_are_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        tools.apply_outputs(Run(state=RunState.RUN_STATE_COMPLETED), [], [output("a")])
    assert caught.value.reason == reasons.ERROR_REASON_RUN_NOT_WAITING


def test_error_output_is_wrapped_for_the_model_and_text_is_not() -> None:
    good = ToolCall(id="a", function=FunctionCall(output="sunny \u2603"))
    bad = ToolCall(id="b", function=FunctionCall(output="no \u2603", output_is_error=True))
    assert tools.output_item(good)["output"] == "sunny \u2603"
    assert tools.output_item(bad)["output"] == '{"error": "no \u2603"}'
