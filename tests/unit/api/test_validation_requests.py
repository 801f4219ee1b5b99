"""Every rule, by the path that its violation names. A request that is right but for one field is refused for it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from famulus.v1.assistant_pb2 import Assistant, JsonSchemaFormat, ResponseFormat
from famulus.v1.assistant_service_pb2 import (
    CreateAssistantRequest,
    GetAssistantRequest,
    ListAssistantsRequest,
    UpdateAssistantRequest,
)
from famulus.v1.message_pb2 import Attachment, ImageFilePart, ImageUrlPart, Message, MessagePart, RefusalPart, TextPart
from famulus.v1.run_pb2 import Run, RunRating, TruncationStrategy
from famulus.v1.run_service_pb2 import (
    CreateRunRequest,
    GetRunRequest,
    ListRunsRequest,
    RateRunRequest,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    ToolOverride,
    UpdateRunRequest,
    WatchRunRequest,
)
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import (
    CreateMessageRequest,
    CreateThreadRequest,
    ForkThreadRequest,
    ListMessagesRequest,
    ListThreadsRequest,
    UpdateMessageRequest,
    UpdateThreadRequest,
)
from famulus.v1.tool_pb2 import (
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    Tool,
    ToolChoice,
    ToolOutput,
    ToolResources,
)
from famulus_server.api.validation import assistants, messages, runs, threads
from famulus_server.errors import InvalidArgument

Check = Callable[[Any], object]


def wrong_fields(check: Check, request: Any) -> list[str]:
    try:
        check(request)
    except InvalidArgument as error:
        return [violation.field for violation in error.violations]
    return []


def function(name: str = "weather", parameters_json: str = "{}", description: str = "") -> Tool:
    return Tool(function=FunctionTool(name=name, parameters_json=parameters_json, description=description))


def described(description: str) -> JsonSchemaFormat:
    return JsonSchemaFormat(name="n", description=description, schema_json="{}")


def said(text: str = "hello", **fields: Any) -> Message:
    return Message(**{"role": 1, "content": [MessagePart(text=TextPart(text=text))], **fields})


ASSISTANT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"name": "n" * 257}, "name"),
    ({"description": "d" * 513}, "description"),
    ({"instructions": "i" * 256_001}, "instructions"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"": "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, 'metadata["k"]'),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"reasoning_effort": 99}, "reasoning_effort"),
    ({"tools": [function(f"f{number}") for number in range(129)]}, "tools"),
    ({"tools": [function(f"f{number}", description="d" * 16_000) for number in range(40)]}, "tools"),
    ({"tools": [function(), Tool()]}, "tools[1].tool"),
    ({"tools": [function(), function()]}, "tools[1].function.name"),
    ({"tools": [function("two words")]}, "tools[0].function.name"),
    ({"tools": [function("f" * 65)]}, "tools[0].function.name"),
    ({"tools": [function(parameters_json="[]")]}, "tools[0].function.parameters_json"),
    ({"tools": [function(description="d" * 16_385)]}, "tools[0].function.description"),
    ({"tools": [Tool(file_search=FileSearchTool(max_num_results=0))]}, "tools[0].file_search.max_num_results"),
    ({"tools": [Tool(file_search=FileSearchTool(score_threshold=2))]}, "tools[0].file_search.score_threshold"),
    (
        {"tool_resources": ToolResources(code_interpreter_file_ids=["f"] * 21)},
        "tool_resources.code_interpreter_file_ids",
    ),
    (
        {"tool_resources": ToolResources(file_search_vector_store_ids=["a", "b"])},
        "tool_resources.file_search_vector_store_ids",
    ),
    (
        {"tool_resources": ToolResources(code_interpreter_file_ids=["a", ""])},
        "tool_resources.code_interpreter_file_ids[1]",
    ),
    (
        {"response_format": ResponseFormat(json_schema=JsonSchemaFormat(name="n"))},
        "response_format.json_schema.schema_json",
    ),
    (
        {"response_format": ResponseFormat(json_schema=described("d" * 16_385))},
        "response_format.json_schema.description",
    ),
    (
        {"response_format": ResponseFormat(json_schema=JsonSchemaFormat(name="a b", schema_json="{}"))},
        "response_format.json_schema.name",
    ),
]


@pytest.mark.parametrize(("fields", "path"), ASSISTANT_FIELDS, ids=lambda value: str(value)[:50])
def test_assistant_is_refused_for_the_one_field_that_is_wrong(fields: dict[str, Any], path: str) -> None:
    request = CreateAssistantRequest(assistant=Assistant(**{"model": "m", **fields}))
    assert wrong_fields(assistants.check_create, request) == [f"assistant.{path}"]


def test_assistant_at_every_limit_is_accepted() -> None:
    assistant = Assistant(
        model="m" * 256,
        name="ä" * 256,
        description="ä" * 512,
        instructions="ä" * 256_000,
        tools=[*(function(f"f{number}") for number in range(126)), Tool(code_interpreter=CodeInterpreterTool())],
        metadata={f"{number:064}": "v" * 512 for number in range(16)},
        temperature=2,
        top_p=0,
        response_format=ResponseFormat(json_schema=JsonSchemaFormat(name="n", schema_json="{}")),
        reasoning_effort=5,  # type: ignore[arg-type]
    )
    assistant.tools.append(Tool(file_search=FileSearchTool(max_num_results=50, score_threshold=1)))
    assert (
        wrong_fields(assistants.check_create, CreateAssistantRequest(assistant=assistant, request_id="~" * 128)) == []
    )


MESSAGE_FIELDS: list[tuple[Message, str]] = [
    (said(role=0), "role"),
    (said(role=3), "role"),
    (said(content=[]), "content"),
    (said(content=[MessagePart()]), "content[0].part"),
    (said(""), "content[0].text.text"),
    (said(content=[MessagePart(text=TextPart(text="x" * 128_001))] * 2), "content"),
    (said(content=[MessagePart(refusal=RefusalPart(refusal="no"))]), "content[0].refusal"),
    (said(content=[MessagePart(image_url=ImageUrlPart(url="file:///x"))]), "content[0].image_url.url"),
    (said(content=[MessagePart(image_file=ImageFilePart())]), "content[0].image_file.file_id"),
    (
        said(content=[MessagePart(image_file=ImageFilePart(file_id="f", detail=9))]),  # type: ignore[arg-type]
        "content[0].image_file.detail",
    ),
    (said(attachments=[Attachment(file_id="f", tools=[1])] * 21), "attachments"),  # type: ignore[list-item]
    (said(attachments=[Attachment(file_id="f")]), "attachments[0].tools"),
    (said(attachments=[Attachment(file_id="f", tools=[0])]), "attachments[0].tools[0]"),  # type: ignore[list-item]
    (said(attachments=[Attachment(tools=[1])]), "attachments[0].file_id"),  # type: ignore[list-item]
    (said(metadata={"k": "v" * 513}), 'metadata["k"]'),
]


@pytest.mark.parametrize(("message", "path"), MESSAGE_FIELDS, ids=lambda value: str(value)[:50])
def test_message_is_refused_wherever_it_comes_in(message: Message, path: str) -> None:
    assert wrong_fields(messages.check_create, CreateMessageRequest(thread_id="t", message=message)) == [
        f"message.{path}"
    ]
    assert wrong_fields(threads.check_create, CreateThreadRequest(messages=[said(), message])) == [
        f"messages[1].{path}"
    ]
    run = CreateRunRequest(thread_id="t", additional_messages=[message])
    assert wrong_fields(runs.check_stream, StreamRunRequest(create=run)) == [f"create.additional_messages[0].{path}"]


RUN_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"thread_id": ""}, "thread_id"),
    ({"thread_id": None, "new_thread": Thread(title="t" * 257)}, "new_thread.title"),
    ({"thread_id": None}, "target"),
    ({"assistant_version": -1}, "assistant_version"),
    ({"additional_messages": [said()] * 101}, "additional_messages"),
    ({"additional_instructions": "i" * 256_001}, "additional_instructions"),
    ({"tools": ToolOverride(tools=[Tool()])}, "tools.tools[0].tool"),
    ({"temperature": math.nan}, "temperature"),
    ({"tool_choice": ToolChoice(mode=9)}, "tool_choice.mode"),  # type: ignore[arg-type]
    ({"tool_choice": ToolChoice(function_name="")}, "tool_choice.function_name"),
    (
        {"tool_choice": ToolChoice(function_name="other"), "tools": ToolOverride(tools=[function()])},
        "tool_choice.function_name",
    ),
    ({"truncation_strategy": TruncationStrategy(last_messages=0)}, "truncation_strategy.last_messages"),
    ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_turns": 101}, "max_turns"),
    ({"max_turns": -1}, "max_turns"),
    ({"ttl": Duration()}, "ttl"),
    ({"ttl": Duration(nanos=999_999_999)}, "ttl"),
    ({"ttl": Duration(seconds=7 * 86_400, nanos=1)}, "ttl"),
    ({"ttl": Duration(seconds=2**62)}, "ttl"),
    ({"ttl": Duration(seconds=5, nanos=-1)}, "ttl"),
    ({"request_id": "line\nbreak"}, "request_id"),
    ({"request_id": "ä"}, "request_id"),
    ({"request_id": "r" * 129}, "request_id"),
    ({"metadata": {"k": "v" * 513}}, 'metadata["k"]'),
]


@pytest.mark.parametrize(("fields", "path"), RUN_FIELDS, ids=lambda value: str(value)[:50])
def test_run_is_refused_for_the_one_field_that_is_wrong(fields: dict[str, Any], path: str) -> None:
    request = CreateRunRequest(**{"thread_id": "t", **fields})
    assert wrong_fields(runs.check_create, request) == [path]
    assert wrong_fields(runs.check_stream, StreamRunRequest(create=request)) == [f"create.{path}"]


OTHERS: list[tuple[Check, Any, list[str]]] = [
    (assistants.check_get, GetAssistantRequest(assistant_id="a", version=-1), ["version"]),
    (assistants.check_list, ListAssistantsRequest(page_size=-1), ["page_size"]),
    (assistants.check_list, ListAssistantsRequest(page_size=2**31 - 1), []),
    (assistants.check_create, CreateAssistantRequest(), ["assistant"]),
    (threads.check_list, ListThreadsRequest(user_id="u" * 257), ["user_id"]),
    (threads.check_list, ListThreadsRequest(active_after=Timestamp(seconds=2**60)), ["active_after"]),
    (threads.check_list, ListThreadsRequest(active_before=Timestamp(nanos=-1)), ["active_before"]),
    (threads.check_fork, ForkThreadRequest(), ["thread_id"]),
    (threads.check_create, CreateThreadRequest(thread=Thread(user_id="u" * 257)), ["thread.user_id"]),
    (threads.check_create, CreateThreadRequest(messages=[Message()] * 100_000), ["messages"]),
    (threads.check_create, CreateThreadRequest(), []),
    (messages.check_create, CreateMessageRequest(thread_id="t"), ["message"]),
    (messages.check_list, ListMessagesRequest(thread_id="t", after_sequence=-1), ["after_sequence"]),
    (messages.check_list, ListMessagesRequest(thread_id="t", order=7), ["order"]),  # type: ignore[arg-type]
    (runs.check_stream, StreamRunRequest(), ["create"]),
    (runs.check_watch, WatchRunRequest(run_id="r", after_sequence=-1), ["after_sequence"]),
    (runs.check_watch, WatchRunRequest(run_id="r", after_sequence=2**63 - 1), []),
    (runs.check_list, ListRunsRequest(states=[1, 0]), ["states[1]"]),  # type: ignore[list-item]
    (runs.check_list, ListRunsRequest(states=[42]), ["states[0]"]),  # type: ignore[list-item]
    (runs.check_list, ListRunsRequest(states=[1] * 1_000), ["states"]),  # type: ignore[list-item]
    (runs.check_submit, SubmitToolOutputsRequest(run_id="r"), ["tool_outputs"]),
    (
        runs.check_submit,
        SubmitToolOutputsRequest(run_id="r", tool_outputs=[ToolOutput(call_id="c")] * 2),
        ["tool_outputs[1].call_id"],
    ),
    (
        runs.check_submit,
        SubmitToolOutputsRequest(run_id="r", tool_outputs=[ToolOutput(call_id="c", output="ä" * 600_000)]),
        ["tool_outputs[0].output"],
    ),
    (runs.check_rate, RateRunRequest(run_id="r"), ["rating"]),
    (runs.check_rate, RateRunRequest(run_id="r", rating=RunRating()), ["rating.verdict"]),
    (
        runs.check_rate,
        RateRunRequest(run_id="r", rating=RunRating(verdict=1, comment="c" * 2_001)),  # type: ignore[arg-type]
        ["rating.comment"],
    ),
    (runs.check_update, UpdateRunRequest(), ["run"]),
    (
        runs.check_update,
        UpdateRunRequest(run=Run(id="r"), update_mask=FieldMask(paths=["state"])),
        ["update_mask.paths[0]"],
    ),
    (
        messages.check_update,
        UpdateMessageRequest(thread_id="t", message=Message(id="m"), update_mask=FieldMask(paths=["content"])),
        ["update_mask.paths[0]"],
    ),
]


@pytest.mark.parametrize(("check", "request_", "paths"), OTHERS, ids=lambda value: str(value)[:50])
def test_other_requests_name_what_is_wrong(check: Check, request_: Any, paths: list[str]) -> None:
    assert wrong_fields(check, request_) == paths


@pytest.mark.parametrize("bad", ["", "r" * 129, "a\0b", "a\r\nb", "\x7f"])
def test_id_of_impossible_form_is_refused(bad: str) -> None:
    assert wrong_fields(runs.check_one, GetRunRequest(run_id=bad)) == ["run_id"]


@pytest.mark.parametrize("odd", ["%00", "' or 1=1", "../", "*", "{tag}", "thread_x", "ä"])
def test_odd_id_is_left_to_be_not_found(odd: str) -> None:
    assert wrong_fields(runs.check_one, GetRunRequest(run_id=odd)) == []


def test_all_wrong_fields_are_named_at_once() -> None:
    request = CreateRunRequest(max_turns=-1, temperature=3, additional_messages=[said(role=0), said("")])
    assert wrong_fields(runs.check_create, request) == [
        "target",
        "additional_messages[0].role",
        "additional_messages[1].content[0].text.text",
        "temperature",
        "max_turns",
    ]


def test_number_of_named_fields_is_bounded() -> None:
    assert len(wrong_fields(threads.check_create, CreateThreadRequest(messages=[Message()] * 100))) == 20


def update(paths: list[str], **fields: Any) -> UpdateAssistantRequest:
    return UpdateAssistantRequest(assistant=Assistant(id="a", **fields), update_mask=FieldMask(paths=paths))


def test_empty_mask_changes_what_is_set() -> None:
    request = update([], name="n", metadata={"k": "v"}, temperature=0.0, version=3)
    assert assistants.check_update(request) == ["name", "metadata", "temperature"]


def test_star_changes_all_mutable_fields() -> None:
    assert "tools" in assistants.check_update(update(["*"], model="m"))
    request = UpdateThreadRequest(thread=Thread(id="t"), update_mask=FieldMask(paths=["*"]))
    mutable = ["title", "default_assistant_id", "tool_resources", "metadata", "retention"]
    assert threads.check_update(request) == mutable


def test_mask_can_clear_a_field_but_not_the_model() -> None:
    assert assistants.check_update(update(["description"])) == ["description"]
    assert wrong_fields(assistants.check_update, update(["model"])) == ["assistant.model"]
    assert wrong_fields(assistants.check_update, update(["*"])) == ["assistant.model"]


@pytest.mark.parametrize("path", ["id", "etag", "version", "unknown", "", "metadata.key", "tools[0]"])
def test_mask_refuses_paths_that_cannot_be_changed(path: str) -> None:
    assert wrong_fields(assistants.check_update, update(["name", path])) == ["update_mask.paths[1]"]


def test_star_beside_other_paths_is_refused() -> None:
    assert wrong_fields(assistants.check_update, update(["*", "name"], model="m")) == ["update_mask.paths[0]"]


def test_owner_of_a_thread_never_changes() -> None:
    request = UpdateThreadRequest(thread=Thread(id="t", user_id="u"), update_mask=FieldMask(paths=["user_id"]))
    assert wrong_fields(threads.check_update, request) == ["update_mask.paths[0]"]
