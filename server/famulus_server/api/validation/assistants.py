"""Requests of AssistantService."""

from famulus.v1.assistant_pb2 import Assistant, JsonSchemaFormat, ReasoningEffort
from famulus.v1.assistant_service_pb2 import (
    CreateAssistantRequest,
    DeleteAssistantRequest,
    EnsureAssistantRequest,
    GetAssistantRequest,
    ListAssistantsRequest,
    ListAssistantVersionsRequest,
    UpdateAssistantRequest,
)
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus_server.api.validation import masks, schemas
from famulus_server.api.validation.fields import Fields
from famulus_server.api.validation.tools import MOST_EXPLANATION, NAME, NAME_RULE, check_tool_resources, check_tools

MOST_INSTRUCTIONS = 256_000
MOST_NAME = 256
_MOST_DESCRIPTION = 512
_MUTABLE = (
    "name",
    "description",
    "model",
    "instructions",
    "tools",
    "tool_resources",
    "metadata",
    "temperature",
    "top_p",
    "response_format",
    "reasoning_effort",
)


def check_create(request: CreateAssistantRequest) -> None:
    with Fields() as fields:
        fields.request_id(request.request_id)
        if fields.present("assistant", request):
            _check_assistant(fields.at("assistant"), request.assistant, needs_model=True)


def check_ensure(request: EnsureAssistantRequest) -> None:
    with Fields() as fields:
        if fields.present("assistant", request):
            _check_assistant(fields.at("assistant"), request.assistant, needs_model=True)


def check_get(request: GetAssistantRequest) -> None:
    with Fields() as fields:
        fields.id("assistant_id", request.assistant_id)
        fields.at_least("version", request.version, 0)


def check_list(request: ListAssistantsRequest) -> None:
    with Fields() as fields:
        fields.page(request)


def check_versions(request: ListAssistantVersionsRequest) -> None:
    with Fields() as fields:
        fields.id("assistant_id", request.assistant_id)
        fields.page(request)


def check_update(request: UpdateAssistantRequest) -> list[str]:
    """Returns the fields to change."""
    with Fields() as fields:
        paths = masks.paths(fields, request.assistant, request.update_mask.paths, _MUTABLE)
        if fields.present("assistant", request):
            at = fields.at("assistant")
            at.id("id", request.assistant.id)
            _check_assistant(at, request.assistant, needs_model="model" in paths)
    return paths


def check_delete(request: DeleteAssistantRequest) -> None:
    with Fields() as fields:
        fields.id("assistant_id", request.assistant_id)


def check_settings(fields: Fields, source: Assistant | CreateRunRequest) -> None:
    """How the model answers: settings of an assistant that a run can override."""
    if source.HasField("temperature"):
        fields.within("temperature", source.temperature, 0, 2)
    if source.HasField("top_p"):
        fields.within("top_p", source.top_p, 0, 1)
    fields.known("reasoning_effort", source.reasoning_effort, ReasoningEffort)
    if source.response_format.WhichOneof("format") == "json_schema":
        _check_json_schema(fields.at("response_format.json_schema"), source.response_format.json_schema)


def _check_assistant(fields: Fields, assistant: Assistant, *, needs_model: bool) -> None:
    fields.text("name", assistant.name, most=MOST_NAME)
    fields.text("description", assistant.description, most=_MOST_DESCRIPTION)
    fields.text("model", assistant.model, most=MOST_NAME, required=needs_model)
    fields.text("instructions", assistant.instructions, most=MOST_INSTRUCTIONS)
    fields.metadata("metadata", assistant.metadata)
    check_tools(fields, assistant.tools)
    check_tool_resources(fields.at("tool_resources"), assistant.tool_resources)
    check_settings(fields, assistant)


def _check_json_schema(fields: Fields, form: JsonSchemaFormat) -> None:
    if not NAME.fullmatch(form.name):
        fields.wrong("name", NAME_RULE)
    fields.text("description", form.description, most=MOST_EXPLANATION)
    if not form.schema_json:
        fields.wrong("schema_json", "is required")
    elif problem := schemas.problem(form.schema_json):
        fields.wrong("schema_json", problem)
