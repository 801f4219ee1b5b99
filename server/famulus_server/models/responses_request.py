"""A model turn as a request of the Responses API."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from famulus.v1.assistant_pb2 import JsonSchemaFormat, ReasoningEffort, ResponseFormat
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolChoice, ToolChoiceMode, ToolResources
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import ModelRequest

Json = dict[str, Any]

EFFORTS = {
    ReasoningEffort.REASONING_EFFORT_NONE: "none",
    ReasoningEffort.REASONING_EFFORT_MINIMAL: "minimal",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
}
MODES = {
    ToolChoiceMode.TOOL_CHOICE_MODE_NONE: "none",
    ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED: "required",
}
_OPENAI = ".api.openai.com"  # and its regions, such as eu.api.openai.com
# What the endpoint that counts knows of a turn: what bears on the size of the input. It refuses all else.
_COUNTED = {
    "model",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "truncation",
}


def build_responses_request(request: ModelRequest, settings: ModelSettings) -> Json:
    """The body. It holds only what is set, and never refers to anything that the provider would have to keep."""
    body: Json = {
        "model": settings.upstream_model or settings.name,
        "input": [item for item in request.items if _is_self_contained(item)],
        "stream": True,
        "store": False,
        "truncation": "disabled",  # what has to go is decided here, before
    }
    optional: Json = {
        "instructions": request.instructions or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_output_tokens": request.max_output_tokens,
        "prompt_cache_key": request.cache_key or None,
        "text": _text(request.response_format),
        "reasoning": _reasoning(request, settings),
        "include": ["reasoning.encrypted_content"] if settings.reasoning else None,
        **user_of(request, settings),
    }
    if request.tools:  # a choice without tools is refused
        resources = request.tool_resources or ToolResources()
        optional |= {
            "tools": [_tool(tool, resources) for tool in request.tools],
            "tool_choice": _choice(request.tool_choice),
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    return body | {key: value for key, value in optional.items() if value is not None}


def build_count_request(request: ModelRequest, settings: ModelSettings) -> Json:
    """The body that asks for the number of input tokens: the same, as far as the endpoint takes it."""
    body = build_responses_request(request, settings)
    return {key: value for key, value in body.items() if key in _COUNTED}


def user_of(request: ModelRequest, settings: ModelSettings) -> Json:
    """Whom the turn is for, in the field that the model's settings choose."""
    field = settings.user_field
    if field == "auto":
        theirs = f".{urlsplit(settings.base_url).hostname or ''}".endswith(_OPENAI)
        field = "safety_identifier" if theirs else "none"
    return {field: request.user} if request.user and field != "none" else {}


def parameters_of(function: FunctionTool) -> Json:
    """The JSON Schema of a function's arguments."""
    empty: Json = {"type": "object", "properties": {}}
    return msgspec.json.decode(function.parameters_json, type=Json) if function.parameters_json else empty


def schema_of(wanted: JsonSchemaFormat) -> Json:
    """Name, description, schema and strictness, in the words that both APIs share."""
    described = {"description": wanted.description} if wanted.description else {}
    schema = msgspec.json.decode(wanted.schema_json, type=Json)
    return {"name": wanted.name, **described, "schema": schema, "strict": wanted.strict}


def _is_self_contained(item: Mapping[str, Any]) -> bool:
    """False for reasoning without content: it stands for what the provider kept, and nothing is kept (`store`)."""
    return item.get("type") != "reasoning" or bool(item.get("encrypted_content") or item.get("content"))


def _tool(tool: Tool, resources: ToolResources) -> Json:
    match tool.WhichOneof("tool"):
        case "code_interpreter":
            files = list(resources.code_interpreter_file_ids)
            return {"type": "code_interpreter", "container": {"type": "auto", **({"file_ids": files} if files else {})}}
        case "file_search":
            search: Json = {"type": "file_search", "vector_store_ids": list(resources.file_search_vector_store_ids)}
            if tool.file_search.HasField("max_num_results"):
                search["max_num_results"] = tool.file_search.max_num_results
            if tool.file_search.HasField("score_threshold"):
                search["ranking_options"] = {"score_threshold": tool.file_search.score_threshold}
            return search
        case _:
            function = tool.function
            described = {"description": function.description} if function.description else {}
            rest = {"parameters": parameters_of(function), "strict": function.strict}  # strict is the API's default
            return {"type": "function", "name": function.name, **described, **rest}


def _choice(choice: ToolChoice | None) -> str | Json | None:
    if choice is None:
        return None
    if choice.WhichOneof("choice") == "function_name":
        return {"type": "function", "name": choice.function_name}
    return MODES.get(choice.mode, "auto")


def _text(wanted: ResponseFormat | None) -> Json | None:
    match wanted and wanted.WhichOneof("format"):
        case "json_object":
            return {"format": {"type": "json_object"}}
        case "json_schema" if wanted:
            return {"format": {"type": "json_schema", **schema_of(wanted.json_schema)}}
        case _:
            return None


def _reasoning(request: ModelRequest, settings: ModelSettings) -> Json | None:
    effort = EFFORTS.get(request.reasoning_effort)
    wanted = {"effort": effort} if effort else {}
    if request.want_reasoning and settings.reasoning:
        wanted["summary"] = "auto"
    return wanted or None
