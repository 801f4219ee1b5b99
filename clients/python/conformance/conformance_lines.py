"""How events, views, results and errors are written into a transcript."""

from collections.abc import Callable, Mapping
from typing import Any

from famulus import FamulusError, RunResult, RunView
from famulus.v1.message_pb2 import Message, MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunErrorCode, RunState
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import ToolCall

Line = dict[str, Any]


def event_line(event: RunEvent) -> Line:
    """An event by its kind."""
    kind = event.WhichOneof("event")
    if kind is None:
        return {"sequence": event.sequence, "kind": "unknown"}
    return {"sequence": event.sequence, "kind": kind, **_DETAILS[kind](getattr(event, kind))}


def view_line(view: RunView) -> Line:
    return {
        "state": _state(view.run) if view.run else "",
        "text": view.text,
        "attempt": view.attempt,
        "messages": len(view.messages),
        "steps": len(view.steps),
    }


def result_line(result: RunResult) -> Line:
    usage = result.run.usage
    return {
        "state": _state(result.run),
        "error": _error(result.run),
        "text": result.text,
        "messages": len(result.messages),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def error_line(error: FamulusError) -> Line:
    return {
        "code": error.code.name,
        "reason": error.reason_name,
        "message": error.message,
        "metadata": error.metadata,
        "violations": [{"field": each.field, "description": each.description} for each in error.violations],
        "retry_after": error.retry_after is not None,
    }


def _step_line(step: RunStep) -> Line:
    return {
        "state": RunStepState.Name(step.state).removeprefix("RUN_STEP_STATE_"),
        "calls": [_call_line(call) for call in step.tool_calls.tool_calls],
    }


def _call_line(call: ToolCall) -> Line:
    function = call.function
    return {"name": function.name, "arguments": function.arguments_json, "output": function.output}


def _message_line(message: Message) -> Line:
    return {"state": MessageState.Name(message.state).removeprefix("MESSAGE_STATE_"), "text": _text(message)}


def _output_line(calls: list[ToolCall]) -> Line:
    function = (calls or [ToolCall()])[0].function
    return {"output": function.output, "is_error": function.output_is_error}


_DETAILS: Mapping[str, Callable[[Any], Line]] = {
    "run_state_changed": lambda kind: {"state": _state(kind.run), "error": _error(kind.run)},
    "step_started": lambda kind: _step_line(kind.step),
    "step_completed": lambda kind: _step_line(kind.step),
    "message_started": lambda kind: _message_line(kind.message),
    "message_completed": lambda kind: _message_line(kind.message),
    "text_delta": lambda kind: {"part_index": kind.part_index, "text": kind.text},
    "refusal_delta": lambda kind: {"part_index": kind.part_index, "refusal": kind.refusal},
    "reasoning_delta": lambda kind: {"text": kind.text},
    "annotation_added": lambda kind: {"part_index": kind.part_index},
    "tool_call_delta": lambda kind: {"name": kind.name, "arguments": kind.arguments_json_delta},
    "tool_calls_requested": lambda kind: {"names": [call.function.name for call in kind.tool_calls]},
    "tool_output_received": lambda kind: _output_line(list(kind.tool_calls)),
    "retry_scheduled": lambda kind: {"reason": _error_code(kind.reason)},
    "attempt_started": lambda kind: {"attempt": kind.attempt, "discards_after": kind.discards_after_sequence},
    "snapshot": lambda kind: {"state": _state(kind.run), "texts": [_text(message) for message in kind.messages]},
}


def _state(run: Run) -> str:
    return RunState.Name(run.state).removeprefix("RUN_STATE_")


def _error(run: Run) -> str:
    return _error_code(run.error.code) if run.HasField("error") else ""


def _error_code(code: "RunErrorCode.ValueType") -> str:
    return RunErrorCode.Name(code).removeprefix("RUN_ERROR_CODE_")


def _text(message: Message) -> str:
    return "".join(part.text.text for part in message.content)
