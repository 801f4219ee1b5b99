"""Requests of RunService."""

from google.protobuf.duration_pb2 import Duration

from famulus.v1.run_pb2 import RatingVerdict, RunPriority, RunState
from famulus.v1.run_service_pb2 import (
    BusyPolicy,
    CancelRunRequest,
    CreateRunRequest,
    GetRunRequest,
    GetRunStepRequest,
    ListRunsRequest,
    ListRunStepsRequest,
    RateRunRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    UpdateRunRequest,
    WaitRunRequest,
    WatchRunRequest,
)
from famulus_server.api.validation import masks
from famulus_server.api.validation.assistants import MOST_INSTRUCTIONS, MOST_NAME, check_settings
from famulus_server.api.validation.fields import Fields
from famulus_server.api.validation.messages import check_messages
from famulus_server.api.validation.threads import check_thread
from famulus_server.api.validation.tools import check_tool_choice, check_tools

_MOST_TURNS = 100
_MOST_TTL_SECONDS = 7 * 24 * 3_600
_MOST_OUTPUTS = 1_000
_MOST_OUTPUT_BYTES = 1024 * 1024
_MOST_COMMENT = 2_000
_NANOS = 1_000_000_000


def check_create(request: CreateRunRequest) -> None:
    with Fields() as fields:
        _check_create(fields, request)


def check_stream(request: StreamRunRequest) -> None:
    with Fields() as fields:
        fields.at_least("after_sequence", request.after_sequence, 0)
        if fields.present("create", request):
            _check_create(fields.at("create"), request.create)


def check_watch(request: WatchRunRequest) -> None:
    with Fields() as fields:
        fields.id("run_id", request.run_id)
        fields.at_least("after_sequence", request.after_sequence, 0)


def check_one(request: GetRunRequest | WaitRunRequest | CancelRunRequest) -> None:
    """A request that holds nothing but the id of a run."""
    with Fields() as fields:
        fields.id("run_id", request.run_id)


def check_list(request: ListRunsRequest) -> None:
    with Fields() as fields:
        fields.page(request)
        fields.id("thread_id", request.thread_id, required=False)
        fields.id("assistant_id", request.assistant_id, required=False)
        if fields.few("states", request.states, len(RunState.values())):
            for index, state in enumerate(request.states):
                fields.known(f"states[{index}]", state, RunState, required=True)


def check_update(request: UpdateRunRequest) -> None:
    with Fields() as fields:
        if fields.present("run", request):
            at = fields.at("run")
            at.id("id", request.run.id)
            at.metadata("metadata", request.run.metadata)
        masks.paths(fields, request.run, request.update_mask.paths, ("metadata",))


def check_submit(request: SubmitToolOutputsRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        fields.id("run_id", request.run_id)
        if not fields.few("tool_outputs", request.tool_outputs, _MOST_OUTPUTS, least=1):
            return
        seen: set[str] = set()
        for index, output in enumerate(request.tool_outputs):
            at = fields.at("tool_outputs", index)
            at.id("call_id", output.call_id)
            if output.call_id in seen:
                at.wrong("call_id", "is answered by another of the outputs, too")
            seen.add(output.call_id)
            if len(output.output) > _MOST_OUTPUT_BYTES or len(output.output.encode()) > _MOST_OUTPUT_BYTES:
                at.wrong("output", f"must have at most {_MOST_OUTPUT_BYTES:,} bytes")


def check_steps(request: ListRunStepsRequest) -> None:
    with Fields() as fields:
        fields.id("run_id", request.run_id)
        fields.page(request)


def check_step(request: GetRunStepRequest) -> None:
    with Fields() as fields:
        fields.id("run_id", request.run_id)
        fields.id("step_id", request.step_id)


def check_rate(request: RateRunRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        fields.id("run_id", request.run_id)
        if fields.present("rating", request):
            at = fields.at("rating")
            at.known("verdict", request.rating.verdict, RatingVerdict, required=True)
            at.text("comment", request.rating.comment, most=_MOST_COMMENT)


def _check_create(fields: Fields, request: CreateRunRequest) -> None:
    fields.request_id(request.request_id)
    match request.WhichOneof("target"):
        case "thread_id":
            fields.id("thread_id", request.thread_id)
        case "new_thread":
            check_thread(fields.at("new_thread"), request.new_thread)
        case None:
            fields.wrong("target", "is required: thread_id or new_thread")
    fields.id("assistant_id", request.assistant_id, required=False)
    fields.at_least("assistant_version", request.assistant_version, 0)
    check_messages(fields, "additional_messages", request.additional_messages)
    fields.metadata("metadata", request.metadata)
    fields.known("busy_policy", request.busy_policy, BusyPolicy)
    fields.known("priority", request.priority, RunPriority)
    _check_overrides(fields, request)
    _check_limits(fields, request)


def _check_overrides(fields: Fields, request: CreateRunRequest) -> None:
    fields.text("model", request.model, most=MOST_NAME)
    fields.text("instructions", request.instructions, most=MOST_INSTRUCTIONS)
    fields.text("additional_instructions", request.additional_instructions, most=MOST_INSTRUCTIONS)
    check_settings(fields, request)
    tools = request.tools.tools if request.HasField("tools") else None
    if tools is not None:
        check_tools(fields.at("tools"), tools)
    if request.HasField("tool_choice"):
        check_tool_choice(fields.at("tool_choice"), request.tool_choice, tools)


def _check_limits(fields: Fields, request: CreateRunRequest) -> None:
    if request.truncation_strategy.WhichOneof("strategy") == "last_messages":
        fields.at_least("truncation_strategy.last_messages", request.truncation_strategy.last_messages, 1)
    if request.HasField("max_prompt_tokens"):
        fields.at_least("max_prompt_tokens", request.max_prompt_tokens, 1)
    if request.HasField("max_completion_tokens"):
        fields.at_least("max_completion_tokens", request.max_completion_tokens, 1)
    fields.within("max_turns", request.max_turns, 0, _MOST_TURNS)
    if request.HasField("ttl") and not _is_ttl(request.ttl):
        fields.wrong("ttl", "must be between 1 second and 7 days")


def _is_ttl(ttl: Duration) -> bool:
    return 0 <= ttl.nanos < _NANOS and _NANOS <= ttl.seconds * _NANOS + ttl.nanos <= _MOST_TTL_SECONDS * _NANOS
