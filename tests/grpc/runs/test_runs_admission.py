"""How a run comes to be, and when it does not."""

import asyncio
from itertools import pairwise

import grpc
import msgspec
import pytest

from famulus.v1.assistant_pb2 import (
    Assistant,
    JsonObjectFormat,
    JsonSchemaFormat,
    ReasoningEffort,
    ResponseFormat,
)
from famulus.v1.assistant_service_pb2 import DeleteAssistantRequest, UpdateAssistantRequest
from famulus.v1.run_pb2 import RunState
from famulus.v1.run_service_pb2 import ListRunsRequest, ToolOverride
from famulus.v1.tool_pb2 import CodeInterpreterTool, FileSearchTool, Tool
from famulus_server.embedded.upstream import Scene, ToolCall
from run_stage import TOOLS, Stage, refused
from serving import said

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = Scene(deltas=6, hold_after=3)
TIME_CALLED = Scene(times=1, tool_calls=(ToolCall(name="get_time"),))
SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'


async def runs_of(stage: Stage, thread_id: str) -> list[str]:
    return [run.id for run in (await stage.runs.ListRuns(ListRunsRequest(thread_id=thread_id))).runs]


async def test_equal_creates_at_once_make_one_run(stage: Stage) -> None:
    stage.play(HELD)
    create = await stage.wanted(request_id="sixty-four")
    runs = await asyncio.gather(*(stage.runs.CreateRun(create) for _ in range(64)))
    assert len({answer.run.id for answer in runs}) == 1
    assert len({answer.run.thread_id for answer in runs}) == 1
    (await stage.request()).released.set()
    story = await stage.tell(runs[0].run.id)
    assert await stage.texts(story.run.thread_id) == ["hello", story.text]
    assert len(stage.asked) == 1


async def test_same_request_id_returns_the_run_as_it_is_now(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted(request_id="as-it-is-now")
    run = (await stage.runs.CreateRun(create)).run
    ended = await stage.wait(run.id)
    assert (await stage.runs.CreateRun(create)).run == ended
    assert len(stage.asked) == 1


async def test_request_id_of_another_request_is_refused(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted(request_id="another")
    run = (await stage.runs.CreateRun(create)).run
    create.additional_instructions = "Be brief."
    refusal = await refused(stage.runs.CreateRun(create))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert (await refused(stage.stream(create))).reason == "REQUEST_ID_REUSED"
    await stage.wait(run.id)


async def test_refused_create_does_not_use_its_request_id_up(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    thread = await stage.thread()
    create = await stage.wanted(request_id="refused", thread_id=thread.id, model="nonesuch")
    assert (await refused(stage.runs.CreateRun(create))).reason == "UNKNOWN_MODEL"
    create.model = "scripted"
    run = (await stage.runs.CreateRun(create)).run
    assert (await stage.wait(run.id)).state == RunState.RUN_STATE_COMPLETED


async def test_second_run_on_a_busy_thread_is_refused_and_names_the_first(stage: Stage) -> None:
    stage.play(HELD)
    first = await stage.start()
    refusal = await refused(stage.start("more", thread_id=first.thread_id))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "THREAD_HAS_ACTIVE_RUN")
    assert refusal.metadata["run_id"] == first.id
    assert await stage.texts(first.thread_id) == ["hello"]
    (await stage.request()).released.set()
    await stage.wait(first.id)
    stage.play(Scene(text="fine"))
    assert (await stage.play_out("more", thread_id=first.thread_id)).text == "fine"


async def test_one_of_many_creates_at_once_on_a_thread_is_accepted(stage: Stage) -> None:
    stage.play(HELD)
    thread = await stage.thread()
    creates = [stage.start(f"number {number}", thread_id=thread.id) for number in range(64)]
    results = await asyncio.gather(*creates, return_exceptions=True)
    [accepted] = [result for result in results if not isinstance(result, BaseException)]
    refusals = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert len(refusals) == 63
    assert {error.code() for error in refusals} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert await runs_of(stage, thread.id) == [accepted.id]
    assert await stage.active_run(thread.id) == accepted.id
    assert len(await stage.messages(thread.id)) == 1
    (await stage.request()).released.set()
    await stage.tell(accepted.id)
    assert await stage.active_run(thread.id) == ""


async def test_update_or_deletion_of_the_assistant_does_not_touch_its_run(stage: Stage) -> None:
    stage.play(TIME_CALLED, Scene(text="fine"))
    assistant = await stage.assistant(instructions="Old.", tools=TOOLS, temperature=0.5)
    run = await stage.start(assistant_id=assistant.id)
    waiting = await stage.wait(run.id)
    changed = Assistant(id=assistant.id, instructions="New.", model="chat")
    await stage.assistants.UpdateAssistant(UpdateAssistantRequest(assistant=changed))
    await stage.assistants.DeleteAssistant(DeleteAssistantRequest(assistant_id=assistant.id))
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    assert (story.run.instructions, story.run.model, story.run.assistant_version) == ("Old.", "scripted", 1)
    assert [body["instructions"] for body in stage.asked] == ["Old.", "Old."]
    assert [body["temperature"] for body in stage.asked] == [0.5, 0.5]


async def test_run_may_pin_a_version_of_its_assistant(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    assistant = await stage.assistant(instructions="First.")
    changed = Assistant(id=assistant.id, instructions="Second.")
    await stage.assistants.UpdateAssistant(UpdateAssistantRequest(assistant=changed))
    pinned = await stage.play_out(assistant_id=assistant.id, assistant_version=1)
    newest = await stage.play_out(assistant_id=assistant.id)
    assert (pinned.run.instructions, pinned.run.assistant_version) == ("First.", 1)
    assert (newest.run.instructions, newest.run.assistant_version) == ("Second.", 2)
    refusal = await refused(stage.start(assistant_id=assistant.id, assistant_version=3))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_run_without_assistant_takes_the_default_of_its_thread(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    assistant = await stage.assistant(instructions="Default.")
    thread = await stage.thread(default_assistant_id=assistant.id)
    story = await stage.play_out(thread_id=thread.id, assistant_id="")
    assert story.run.assistant_id == assistant.id
    assert stage.asked[0]["instructions"] == "Default."


async def test_run_without_any_assistant_is_refused(stage: Stage) -> None:
    thread = await stage.thread()
    refusal = await refused(stage.start(thread_id=thread.id, assistant_id=""))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_ASSISTANT")
    assert await stage.messages(thread.id) == []


async def test_model_that_is_not_configured_is_refused_and_nothing_is_stored(stage: Stage) -> None:
    thread = await stage.thread()
    refusal = await refused(stage.start(thread_id=thread.id, model="nonesuch"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_MODEL")
    assert refusal.metadata["model"] == "nonesuch"
    assert refusal.message == "no such model is configured: nonesuch"
    assert await runs_of(stage, thread.id) == []
    assert await stage.messages(thread.id) == []


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        (Tool(code_interpreter=CodeInterpreterTool()), "code_interpreter"),
        (Tool(file_search=FileSearchTool()), "file_search"),
    ],
)
async def test_built_in_tool_on_a_chat_model_is_refused_and_nothing_is_stored(
    stage: Stage, tool: Tool, name: str
) -> None:
    assistant = await stage.assistant(tools=[tool])
    thread = await stage.thread()
    refusal = await refused(stage.start(thread_id=thread.id, assistant_id=assistant.id, model="chat"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOOL_UNSUPPORTED")
    assert refusal.metadata == {"model": "chat", "tool": name}
    assert await runs_of(stage, thread.id) == []
    assert await stage.messages(thread.id) == []


async def test_deleted_or_unknown_thread_is_not_found(stage: Stage) -> None:
    assert (await refused(stage.start(thread_id="thread_none"))).code is grpc.StatusCode.NOT_FOUND


async def test_overrides_of_a_request_win_over_the_assistant(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    assistant = await stage.assistant(
        instructions="Old.",
        temperature=0.5,
        top_p=0.5,
        tools=TOOLS,
        reasoning_effort=ReasoningEffort.REASONING_EFFORT_LOW,
    )
    story = await stage.play_out(
        assistant_id=assistant.id,
        instructions="New.",
        additional_instructions="And more.",
        temperature=0.0,
        top_p=0.25,
        tools=ToolOverride(),
        parallel_tool_calls=False,
        reasoning_effort=ReasoningEffort.REASONING_EFFORT_HIGH,
        metadata={"k": "v"},
    )
    [body] = stage.asked
    assert body["instructions"] == "New.\n\nAnd more."
    assert (body["temperature"], body["top_p"]) == (0.0, 0.25)
    assert not body.get("tools")
    assert body["reasoning"]["effort"] == "high"
    assert dict(story.run.metadata) == {"k": "v"}


async def test_json_schema_format_is_passed_on(stage: Stage) -> None:
    stage.play(Scene(text='{"a": 1}'))
    wanted = ResponseFormat(json_schema=JsonSchemaFormat(name="answer", schema_json=SCHEMA, strict=True))
    story = await stage.play_out(response_format=wanted)
    assert story.run.response_format == wanted
    form = stage.asked[0]["text"]["format"]
    assert (form["type"], form["name"], form["strict"]) == ("json_schema", "answer", True)
    assert form["schema"]["required"] == ["a"]


async def test_json_object_format_of_the_assistant_is_passed_on(stage: Stage) -> None:
    stage.play(Scene(text="{}"))
    assistant = await stage.assistant(response_format=ResponseFormat(json_object=JsonObjectFormat()))
    await stage.play_out(assistant_id=assistant.id)
    assert stage.asked[0]["text"]["format"] == {"type": "json_object"}


async def test_empty_thread_can_be_run_on(stage: Stage) -> None:
    stage.play(Scene(text="Welcome"))
    assistant = await stage.assistant(instructions="Greet.")
    assert (await stage.play_out("", assistant_id=assistant.id)).text == "Welcome"


async def test_message_said_during_a_run_is_seen_at_its_next_turn(stage: Stage) -> None:
    stage.play(msgspec.structs.replace(TIME_CALLED, hold_after=0), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start("what time?", assistant_id=assistant.id)
    asked = await stage.request()
    await stage.say(run.thread_id, "during the turn")
    asked.released.set()
    waiting = await stage.wait(run.id)
    await stage.say(run.thread_id, "while it waits")
    await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    story = await stage.tell(run.id)
    first, second = (body["input"] for body in stage.asked)
    assert [item["content"][0]["text"] for item in first] == ["what time?"]
    assert [item.get("type") for item in second] == [
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert [item["content"][0]["text"] for item in second[3:]] == ["during the turn", "while it waits"]
    assert await stage.texts(run.thread_id) == ["what time?", "during the turn", "while it waits", story.text]


async def test_input_of_an_earlier_turn_never_changes(stage: Stage) -> None:
    stage.play(msgspec.structs.replace(TIME_CALLED, times=3), Scene(text="fine"))
    assistant = await stage.assistant(tools=TOOLS)
    run = await stage.start("what time?", assistant_id=assistant.id)
    for number in range(3):
        waiting = await stage.wait(run.id)
        await stage.say(run.thread_id, f"note {number}")
        await stage.submit(run.id, (waiting.required_action.tool_calls[0].id, "noon"))
    await stage.tell(run.id)
    inputs = [body["input"] for body in stage.asked]
    for before, after in pairwise(inputs):
        assert after[: len(before)] == before
        assert len(after) > len(before)


async def test_messages_of_one_request_keep_their_order(stage: Stage) -> None:
    stage.play(Scene(text="fine"))
    create = await stage.wanted("")
    create.additional_messages.extend(said(f"number {number}") for number in range(100))
    run = (await stage.runs.CreateRun(create)).run
    await stage.wait(run.id)
    assert [item["content"][0]["text"] for item in stage.asked[0]["input"]] == [f"number {n}" for n in range(100)]
