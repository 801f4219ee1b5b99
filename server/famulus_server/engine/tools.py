"""Function tools: what is wrong with a call, and what an output does to the open calls of a run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.tool_pb2 import FunctionCallProblem, Tool, ToolCall, ToolOutput
from famulus_server.engine import lifecycle
from famulus_server.errors import FailedPrecondition, InvalidArgument

# Calls of one model turn that callers are asked to answer; the model is told that the others were too many.
MAX_CALLS = 128
# Missing calls that an error names: its metadata must fit the headers that clients accept.
_MAX_NAMED = 16

_ANSWERS: Mapping["FunctionCallProblem.ValueType", str] = {
    FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON: "the arguments are not a JSON object; call again",
    FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNKNOWN_FUNCTION: "there is no function of this name",
    FunctionCallProblem.FUNCTION_CALL_PROBLEM_TOO_MANY_CALLS: f"more than {MAX_CALLS} calls at once; call again later",
}


def function_names(tools: Sequence[Tool]) -> frozenset[str]:
    """The names of the function tools among these tools."""
    return frozenset(tool.function.name for tool in tools if tool.HasField("function"))


def find_problem(
    name: str, arguments: str, *, position: int, functions: frozenset[str]
) -> "FunctionCallProblem.ValueType":
    """Why a call is not for the caller to answer; `position` counts the calls of the turn from 0."""
    if position >= MAX_CALLS:
        return FunctionCallProblem.FUNCTION_CALL_PROBLEM_TOO_MANY_CALLS
    if name not in functions:
        return FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNKNOWN_FUNCTION
    try:
        is_object = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError):
        is_object = False
    if is_object:
        return FunctionCallProblem.FUNCTION_CALL_PROBLEM_UNSPECIFIED
    return FunctionCallProblem.FUNCTION_CALL_PROBLEM_ARGUMENTS_NOT_JSON


def answer_problem(call: ToolCall) -> None:
    """Answers a call that has a problem with an error for the model."""
    call.function.output = json.dumps({"error": _ANSWERS[call.function.problem]})
    call.function.output_is_error = True


def is_open(call: ToolCall) -> bool:
    """Whether the call waits for an output."""
    return call.HasField("function") and not call.function.HasField("output")


def output_item(call: ToolCall) -> dict[str, Any]:
    """The answered call as an input item for the model."""
    output = call.function.output
    if call.function.output_is_error and not call.function.problem:
        output = json.dumps({"error": output}, ensure_ascii=False)
    return {"type": "function_call_output", "call_id": call.id, "output": output}


def apply_outputs(run: Run, steps: Sequence[RunStep], outputs: Sequence[ToolOutput]) -> bool:
    """Writes outputs into the open calls of a run's steps, in place. True if that answered them all, False if the run
    had these outputs before, in whichever turn (contract 20).

    Raises InvalidArgument for calls that the run has not or has open besides, FailedPrecondition where the run
    expired, ended, or has other outputs for these calls.
    """
    calls = {call.id: call for step in steps for call in step.tool_calls.tool_calls if call.HasField("function")}
    given: dict[str, ToolOutput] = {}
    for output in outputs:
        call = calls.get(output.call_id)
        if call is None:
            _refuse_state(run)
            raise InvalidArgument(
                reasons.ERROR_REASON_UNKNOWN_TOOL_CALL,
                "the run has no such call",
                metadata={"call_id": output.call_id},
            )
        if is_open(call):
            given[output.call_id] = output
        elif not _has_output(call, output):
            raise FailedPrecondition(
                reasons.ERROR_REASON_TOOL_OUTPUT_CONFLICT,
                "the call has another output already",
                metadata={"call_id": output.call_id},
            )
    if not given:
        return False
    _refuse_state(run)
    missing = [call.id for call in calls.values() if is_open(call) and call.id not in given]
    if missing:
        raise InvalidArgument(
            reasons.ERROR_REASON_TOOL_OUTPUTS_INCOMPLETE,
            "submit the outputs of all open calls together",
            metadata={"call_ids": ",".join(missing[:_MAX_NAMED])},
        )
    for call_id, output in given.items():
        calls[call_id].function.output = output.output
        calls[call_id].function.output_is_error = output.is_error
    return True


def _has_output(call: ToolCall, output: ToolOutput) -> bool:
    function = call.function
    return (
        function.HasField("output") and function.output == output.output and function.output_is_error == output.is_error
    )


def _refuse_state(run: Run) -> None:
    if run.state == lifecycle.EXPIRED:
        raise FailedPrecondition(reasons.ERROR_REASON_RUN_EXPIRED, "the run expired before the outputs came")
    if run.state != lifecycle.REQUIRES_ACTION:
        raise FailedPrecondition(
            reasons.ERROR_REASON_RUN_NOT_WAITING,
            "the run does not wait for outputs",
            metadata={"state": RunState.Name(run.state)},
        )
