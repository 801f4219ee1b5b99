"""How a model turn is written in each API."""

from typing import Any

import pytest

from famulus.v1.assistant_pb2 import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ReasoningEffort,
    ResponseFormat,
)
from famulus.v1.tool_pb2 import (
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    Tool,
    ToolChoice,
    ToolChoiceMode,
    ToolResources,
)
from famulus_server.errors import ModelRejectedRequest
from famulus_server.models.chat_request import build_chat_request, build_messages
from famulus_server.models.responses_request import build_responses_request
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import ModelRequest

SCHEMA = '{"type":"object","properties":{"city":{"type":"string"}}}'
PARSED = {"type": "object", "properties": {"city": {"type": "string"}}}
NO_ARGUMENTS = {"type": "object", "properties": {}}
WEATHER = Tool(function=FunctionTool(name="weather", description="tells it", parameters_json=SCHEMA, strict=True))
TIME = Tool(function=FunctionTool(name="time"))
AS_JSON = ResponseFormat(json_schema=JsonSchemaFormat(name="city", schema_json=SCHEMA, strict=True))
FULL: dict[str, Any] = {
    "instructions": "be brief",
    "tools": [WEATHER, TIME],
    "tool_choice": ToolChoice(function_name="weather"),
    "parallel_tool_calls": False,
    "temperature": 0.0,
    "top_p": 0.5,
    "max_output_tokens": 99,
    "response_format": AS_JSON,
    "reasoning_effort": ReasoningEffort.REASONING_EFFORT_LOW,
    "want_reasoning": True,
    "cache_key": "thread_1",
}


def settings(**given: Any) -> ModelSettings:
    return ModelSettings(**{"name": "m", "backend": "responses", "base_url": "http://127.0.0.1"} | given)


def responses(given: ModelSettings | None = None, **request: Any) -> dict[str, Any]:
    return build_responses_request(ask(**request), given or settings())


def chat(given: ModelSettings | None = None, **request: Any) -> dict[str, Any]:
    return build_chat_request(ask(**request), given or settings())


def ask(**request: Any) -> ModelRequest:
    return ModelRequest(**{"model": "m", "instructions": "", "items": []} | request)


def message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)}


def text(words: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": words}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": "{}"}


def output(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": f"{name}!"}


def chat_call(name: str) -> dict[str, Any]:
    return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}


def test_responses_request_holds_only_what_is_set() -> None:
    assert responses() == {"model": "m", "input": [], "stream": True, "store": False, "truncation": "disabled"}


def test_responses_request_says_everything() -> None:
    body = responses(settings(reasoning=True, upstream_model="vendor/m"), **FULL)
    strict = {"name": "city", "schema": PARSED, "strict": True}
    assert body == {
        "model": "vendor/m",
        "input": [],
        "stream": True,
        "store": False,
        "truncation": "disabled",
        "instructions": "be brief",
        "temperature": 0.0,
        "top_p": 0.5,
        "max_output_tokens": 99,
        "prompt_cache_key": "thread_1",
        "text": {"format": {"type": "json_schema", **strict}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "tools": [
            {"type": "function", "name": "weather", "description": "tells it", "parameters": PARSED, "strict": True},
            {"type": "function", "name": "time", "parameters": NO_ARGUMENTS, "strict": False},
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
    }


def test_built_in_tools_are_the_apis_own() -> None:
    search = FileSearchTool(max_num_results=3, score_threshold=0.5)
    tools = [Tool(code_interpreter=CodeInterpreterTool()), Tool(file_search=search), Tool(file_search=FileSearchTool())]
    resources = ToolResources(code_interpreter_file_ids=["file_1"], file_search_vector_store_ids=["vs_1"])
    assert responses(tools=tools, tool_resources=resources)["tools"] == [
        {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file_1"]}},
        {
            "type": "file_search",
            "vector_store_ids": ["vs_1"],
            "max_num_results": 3,
            "ranking_options": {"score_threshold": 0.5},
        },
        {"type": "file_search", "vector_store_ids": ["vs_1"]},
    ]
    assert responses(tools=tools[:1])["tools"] == [{"type": "code_interpreter", "container": {"type": "auto"}}]


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        (ToolChoiceMode.TOOL_CHOICE_MODE_UNSPECIFIED, "auto"),
        (ToolChoiceMode.TOOL_CHOICE_MODE_AUTO, "auto"),
        (ToolChoiceMode.TOOL_CHOICE_MODE_NONE, "none"),
        (ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, "required"),
    ],
)
def test_tool_choice_is_said_only_with_tools(mode: Any, word: str) -> None:
    choice = ToolChoice(mode=mode)
    assert responses(tools=[TIME], tool_choice=choice)["tool_choice"] == word
    assert chat(tools=[TIME], tool_choice=choice)["tool_choice"] == word
    assert "tool_choice" not in responses(tool_choice=choice) | chat(tool_choice=choice)


def test_reasoning_without_content_is_not_sent_because_nobody_stored_it() -> None:
    kept = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"}
    bare = {"type": "reasoning", "id": "rs_2", "summary": [text("thought", "summary_text")]}
    unknown = {"type": "hologram_call", "depth": 3}
    assert responses(items=[kept, bare, unknown, call("f")])["input"] == [kept, unknown, call("f")]


def test_chat_request_says_everything() -> None:
    assert chat(settings(), **FULL) == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 0.5,
        "max_completion_tokens": 99,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": PARSED, "strict": True},
        },
        "reasoning_effort": "low",
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "tells it", "parameters": PARSED, "strict": True},
            },
            {"type": "function", "function": {"name": "time", "parameters": NO_ARGUMENTS}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    }


def test_json_objects_are_asked_for_in_both_apis() -> None:
    wanted = ResponseFormat(json_object=JsonObjectFormat())
    assert responses(response_format=wanted)["text"] == {"format": {"type": "json_object"}}
    assert chat(response_format=wanted)["response_format"] == {"type": "json_object"}


def test_old_chat_servers_get_max_tokens() -> None:
    body = chat(settings(legacy_max_tokens=True), max_output_tokens=7)
    assert body["max_tokens"] == 7
    assert "max_completion_tokens" not in body


def test_calls_join_the_message_before_them() -> None:
    items = [
        message("user", text("hi")),
        message("assistant", text("wait", "output_text")),
        {"type": "reasoning", "summary": []},
        call("a"),
        call("b"),
        output("a"),
        output("b"),
        call("c"),
        output("c"),
        message("assistant", text("done", "output_text"), {"type": "refusal", "refusal": "no more"}),
    ]
    assert build_messages(items) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "wait", "tool_calls": [chat_call("a"), chat_call("b")]},
        {"role": "tool", "tool_call_id": "call_a", "content": "a!"},
        {"role": "tool", "tool_call_id": "call_b", "content": "b!"},
        {"role": "assistant", "content": None, "tool_calls": [chat_call("c")]},
        {"role": "tool", "tool_call_id": "call_c", "content": "c!"},
        {"role": "assistant", "content": "done\nno more"},
    ]


def test_text_after_calls_does_not_part_them_from_their_outputs() -> None:
    items = [call("a"), message("assistant", text("so", "output_text")), output("a")]
    assert [found["role"] for found in build_messages(items)] == ["assistant", "tool"]


def test_text_stays_a_string_and_images_become_parts() -> None:
    image = {"type": "input_image", "image_url": "https://a/b.png", "detail": "low"}
    items = [
        message("user", text("a"), text("b")),
        message("user", text("see"), image),
        message("developer", text("x")),
    ]
    assert build_messages(items) == [
        {"role": "user", "content": "a\nb"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}},
            ],
        },
        {"role": "system", "content": "x"},
    ]


def test_what_chat_cannot_carry_is_refused_and_not_dropped() -> None:
    with pytest.raises(ModelRejectedRequest):
        build_messages([message("user", {"type": "input_image", "file_id": "file_1"})])
    with pytest.raises(ModelRejectedRequest):
        chat(tools=[Tool(code_interpreter=CodeInterpreterTool())])


def test_settings_do_not_show_their_key() -> None:
    assert "sk-1" not in repr(settings(api_key="sk-1"))
