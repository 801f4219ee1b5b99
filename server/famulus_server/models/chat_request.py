"""A model turn as a request of Chat Completions. Input items become messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from famulus.v1.assistant_pb2 import ResponseFormat
from famulus.v1.tool_pb2 import Tool, ToolChoice
from famulus_server.errors import ModelRejectedRequest
from famulus_server.models.responses_request import EFFORTS, MODES, parameters_of, schema_of, user_of
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import ModelRequest

Json = dict[str, Any]
Item = Mapping[str, Any]


def build_chat_request(request: ModelRequest, settings: ModelSettings) -> Json:
    """The body; it holds only what is set. Raises ModelRejectedRequest for what this API cannot express."""
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    body: Json = {
        "model": settings.upstream_model or settings.name,
        "messages": system + build_messages(request.items),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    limit = "max_tokens" if settings.legacy_max_tokens else "max_completion_tokens"
    optional: Json = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        limit: request.max_output_tokens,
        "response_format": _format(request.response_format),
        "reasoning_effort": EFFORTS.get(request.reasoning_effort),
        **user_of(request, settings),
    }
    if request.tools:  # a choice without tools is refused
        optional |= {
            "tools": [_tool(tool) for tool in request.tools],
            "tool_choice": _choice(request.tool_choice),
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    return body | {key: value for key, value in optional.items() if value is not None}


def build_messages(items: Sequence[Item]) -> list[Json]:
    """Input items as messages. Calls join the assistant's message before them; reasoning has no place and goes."""
    messages: list[Json] = []
    for item in items:
        match item.get("type", "message"):
            case "message" if item.get("role") == "assistant":
                _add_assistant_text(messages, _plain_text(item.get("content")))
            case "message":
                role = "user" if item.get("role") == "user" else "system"
                messages.append({"role": role, "content": _content(item.get("content"))})
            case "function_call":
                _add_call(messages, item)
            case "function_call_output":
                output = {"tool_call_id": item["call_id"], "content": _plain_text(item.get("output"))}
                messages.append({"role": "tool", **output})
    return messages


def _add_assistant_text(messages: list[Json], text: str) -> None:
    if messages and "tool_calls" in messages[-1]:
        # Nothing may come between calls and their outputs.
        messages[-1]["content"] = (messages[-1]["content"] or "") + text
    else:
        messages.append({"role": "assistant", "content": text})


def _add_call(messages: list[Json], item: Item) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item["name"], "arguments": item["arguments"]}
    messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _content(content: Any) -> str | list[Json]:
    """Text alone stays a string: many chat templates know nothing else."""
    parts = content if isinstance(content, list) else []
    if isinstance(content, str) or all(part["type"] == "input_text" for part in parts):
        return _plain_text(content)
    return [_part(part) for part in parts]


def _part(part: Json) -> Json:
    match part["type"]:
        case "input_text":
            return {"type": "text", "text": part["text"]}
        case "input_image" if part.get("image_url"):
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_file" if part.get("file_id"):
            return {"type": "file", "file": {"file_id": part["file_id"]}}
        case kind:
            raise ModelRejectedRequest(f"chat completions cannot carry this {kind}")


def _plain_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = [part.get("text") or part.get("refusal") or "" for part in content or ()]
    return "\n".join(text for text in texts if text)


def _tool(tool: Tool) -> Json:
    if tool.WhichOneof("tool") != "function":
        raise ModelRejectedRequest("chat completions have no built-in tools")
    function = tool.function
    described = {"description": function.description} if function.description else {}
    strict = {"strict": True} if function.strict else {}
    return {
        "type": "function",
        "function": {"name": function.name, **described, "parameters": parameters_of(function), **strict},
    }


def _choice(choice: ToolChoice | None) -> str | Json | None:
    if choice is None:
        return None
    if choice.WhichOneof("choice") == "function_name":
        return {"type": "function", "function": {"name": choice.function_name}}
    return MODES.get(choice.mode, "auto")


def _format(wanted: ResponseFormat | None) -> Json | None:
    match wanted and wanted.WhichOneof("format"):
        case "json_object":
            return {"type": "json_object"}
        case "json_schema" if wanted:
            return {"type": "json_schema", "json_schema": schema_of(wanted.json_schema)}
        case _:
            return None
