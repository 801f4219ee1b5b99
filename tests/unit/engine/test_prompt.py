"""From a thread to the input of a model turn."""

from typing import Any

import pytest

from contract.samples import TENANT, add_messages, add_thread
from famulus.v1.message_pb2 import (
    Attachment,
    AttachmentTool,
    ImageDetail,
    ImageFilePart,
    ImageUrlPart,
    Message,
    MessagePart,
    MessageRole,
    RefusalPart,
    TextPart,
)
from famulus.v1.run_pb2 import Run, RunState, TruncationStrategy
from famulus.v1.tool_pb2 import FunctionTool, Tool, ToolChoice, ToolChoiceMode, ToolResources
from famulus_server.engine import prompt
from famulus_server.engine.prompt import Prompt
from famulus_server.ports import ModelCard, Store, Turn
from unit.engine.alone import NoThreadCache

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}


def card(window: int = 8_192, own_limit: int | None = None) -> ModelCard:
    return ModelCard(name="m", context_window=window, max_output_tokens=own_limit, built_in_tools=True)


def the_run(**fields: Any) -> Run:
    return Run(id="run_1", thread_id="thread_1", model="m", state=RunState.RUN_STATE_IN_PROGRESS, **fields)


async def build(store: Store, run: Run, *turns: Turn, model: ModelCard | None = None) -> Prompt:
    return await prompt.build(store, NoThreadCache(), TENANT, run, model or card(), turns)


def words(made: Prompt) -> list[str]:
    """The items in short."""
    return [item["content"][0]["text"] if item["type"] == "message" else item["type"] for item in made.request.items]


def user(*parts: MessagePart, **fields: Any) -> Message:
    return Message(role=MessageRole.MESSAGE_ROLE_USER, content=parts, **fields)


def assistant(*parts: MessagePart) -> Message:
    return Message(role=MessageRole.MESSAGE_ROLE_ASSISTANT, content=parts)


def text(words: str) -> MessagePart:
    return MessagePart(text=TextPart(text=words))


async def append(store: Store, *messages: Message) -> None:
    await store.write(lambda tx: tx.messages.append(TENANT, "thread_1", messages))


async def test_first_turn_sees_the_thread_in_order(store: Store) -> None:
    await add_thread(store, "thread_1", "one", "two", "three")
    made = await build(store, the_run())
    assert words(made) == ["one", "two", "three"]
    assert made.seen_sequence == 3


async def test_empty_thread_makes_an_empty_input(store: Store) -> None:
    await add_thread(store, "thread_1")
    made = await build(store, the_run())
    assert (words(made), made.seen_sequence) == ([], 0)


async def test_later_turns_see_items_of_turns_and_messages_where_they_came_in(store: Store) -> None:
    await add_thread(store, "thread_1", "one", "two", "three", "four", "five")
    turns = [
        Turn(number=1, seen_sequence=2, items=[CALL, OUTPUT]),
        Turn(number=2, seen_sequence=4, items=[CALL, OUTPUT]),
    ]
    made = await build(store, the_run(turns=2), *turns)
    round_trip = ["function_call", "function_call_output"]
    assert words(made) == ["one", "two", *round_trip, "three", "four", *round_trip, "five"]
    assert made.seen_sequence == 5


async def test_messages_of_the_run_itself_are_sent_as_its_turns_items_only(store: Store) -> None:
    await add_thread(store, "thread_1", "one")
    own = assistant(text("I look it up"))
    own.id, own.run_id = "msg_own", "run_1"
    await append(store, own)
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look it up"}]}
    made = await build(store, the_run(turns=1), Turn(number=1, seen_sequence=1, items=[said, CALL, OUTPUT]))
    assert words(made) == ["one", "I look it up", "function_call", "function_call_output"]


async def test_window_of_last_messages_is_that_of_the_first_turn(store: Store) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(10)))
    run = the_run(truncation_strategy=TruncationStrategy(last_messages=2))
    first = await build(store, run)
    assert words(first) == ["m8", "m9"]
    await add_messages(store, "thread_1", "new")
    turn = Turn(number=1, seen_sequence=first.seen_sequence, items=[CALL, OUTPUT])
    run.turns = 1
    assert words(await build(store, run, turn)) == ["m8", "m9", "function_call", "function_call_output", "new"]


async def test_auto_drops_from_the_middle_of_a_thread_of_several_pages(store: Store) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(1_000)))
    made = words(await build(store, the_run(), model=card(4_096, 100)))
    assert made[0] == "m0"
    assert 250 < len(made) < 1_000
    assert made[1:] == [f"m{number}" for number in range(1_001 - len(made), 1_000)]
    assert words(await build(store, the_run(), model=card(1_000_000))) == [f"m{number}" for number in range(1_000)]


@pytest.mark.parametrize(
    ("window", "own", "fields", "fewer"),
    [
        (2_048, None, {"instructions": "i" * 3_000}, True),
        (2_048, 1_000, {}, True),
        (2_048, None, {"max_prompt_tokens": 500}, True),
        (2_048, None, {"max_prompt_tokens": 100_000}, False),
        (2_048, None, {"max_completion_tokens": 1_000}, True),
    ],
)
async def test_what_narrows_the_window(
    store: Store, window: int, own: int | None, fields: dict[str, Any], fewer: bool
) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(400)))
    plain = len(words(await build(store, the_run(), model=card(window))))
    other = len(words(await build(store, the_run(**fields), model=card(window, own))))
    assert 2 < plain < 400
    assert (other < plain) == fewer


async def test_window_stays_while_the_completion_tokens_are_used_up(store: Store) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(400)))
    run = the_run(max_completion_tokens=1_000)
    first = await build(store, run, model=card(2_048))
    run.turns, run.usage.completion_tokens = 1, 900
    turn = Turn(number=1, seen_sequence=first.seen_sequence, items=[CALL, OUTPUT])
    second = await build(store, run, turn, model=card(2_048))
    assert words(second)[:-2] == words(first)


async def test_all_messages_that_came_in_meanwhile_are_sent(store: Store) -> None:
    await add_thread(store, "thread_1", "old")
    late = [f"m{number}" for number in range(1_250)]
    await add_messages(store, "thread_1", *late)
    made = await build(store, the_run(turns=1), Turn(number=1, seen_sequence=1, items=[CALL, OUTPUT]))
    assert words(made) == ["old", "function_call", "function_call_output", *late]
    assert made.seen_sequence == 1_251


async def test_window_that_was_cut_to_size_fits(store: Store) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(1_000)))
    made = await build(store, the_run(), model=card(4_096, 100))
    assert made.fits
    assert 3_900 < made.estimated_tokens < 4_096


@pytest.mark.parametrize(("characters", "fits"), [(10_000, True), (300_000, False)])
async def test_outputs_of_tools_may_be_more_than_the_context_holds(store: Store, characters: int, fits: bool) -> None:
    await add_thread(store, "thread_1", "one")
    turn = Turn(number=1, seen_sequence=1, items=[CALL, OUTPUT | {"output": "o" * characters}])
    made = await build(store, the_run(turns=1), turn)
    assert made.fits == fits
    assert characters / 4 < made.estimated_tokens < characters / 2


@pytest.mark.parametrize(("characters", "fits"), [(10_000, True), (30_000, False)])
async def test_messages_that_come_in_meanwhile_may_be_more_than_the_context_holds(
    store: Store, characters: int, fits: bool
) -> None:
    await add_thread(store, "thread_1", "one")
    await add_messages(store, "thread_1", "n" * characters)
    made = await build(store, the_run(turns=1), Turn(number=1, seen_sequence=1, items=[CALL, OUTPUT]))
    assert made.fits == fits


async def test_instructions_and_tools_take_room_too(store: Store) -> None:
    await add_thread(store, "thread_1", "one")
    tool = Tool(function=FunctionTool(name="f", description="d" * 15_000))
    assert (await build(store, the_run(tools=[tool]))).fits
    assert not (await build(store, the_run(tools=[tool], instructions="i" * 15_000))).fits


async def test_newest_message_is_sent_whatever_it_costs(store: Store) -> None:
    await add_thread(store, "thread_1", "first", "second", "n" * 100_000)
    assert [len(word) for word in words(await build(store, the_run()))] == [5, 100_000]


async def test_images_and_files_become_parts_of_the_input() -> None:
    message = user(
        text("look"),
        MessagePart(image_url=ImageUrlPart(url="https://example.com/a.png", detail=ImageDetail.IMAGE_DETAIL_LOW)),
        MessagePart(image_file=ImageFilePart(file_id="file_1")),
        attachments=[
            Attachment(file_id="file_2", tools=[AttachmentTool.ATTACHMENT_TOOL_FILE_SEARCH]),
            Attachment(file_id="file_3", tools=[AttachmentTool.ATTACHMENT_TOOL_CODE_INTERPRETER]),
        ],
    )
    [item] = prompt.message_items(message)
    assert item == {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
            {"type": "input_image", "file_id": "file_1", "detail": "auto"},
            {"type": "input_file", "file_id": "file_2"},
        ],
    }


def test_assistants_messages_are_output_and_empty_ones_are_left_out() -> None:
    [item] = prompt.message_items(assistant(text("yes"), MessagePart(refusal=RefusalPart(refusal="no"))))
    assert item["role"] == "assistant"
    assert item["content"] == [{"type": "output_text", "text": "yes"}, {"type": "refusal", "refusal": "no"}]
    assert prompt.message_items(assistant(text(""))) == []


async def test_files_for_the_code_interpreter_gather_from_run_and_messages_even_late_ones(store: Store) -> None:
    def bringing(file_id: str) -> Message:
        tools = [AttachmentTool.ATTACHMENT_TOOL_CODE_INTERPRETER]
        return user(text("see"), id=f"msg_{file_id}", attachments=[Attachment(file_id=file_id, tools=tools)])

    await add_thread(store, "thread_1")
    await append(store, bringing("f2"), bringing("f1"))
    run = the_run(tool_resources=ToolResources(code_interpreter_file_ids=["f1"]))
    first = await build(store, run)
    assert first.request.tool_resources is not None
    assert list(first.request.tool_resources.code_interpreter_file_ids) == ["f1", "f2"]
    await append(store, bringing("f3"))
    run.turns = 1
    second = await build(store, run, Turn(number=1, seen_sequence=2, items=[CALL, OUTPUT]))
    assert second.request.tool_resources is not None
    assert list(second.request.tool_resources.code_interpreter_file_ids) == ["f1", "f2", "f3"]


@pytest.mark.parametrize(
    ("choice", "later"),
    [
        (ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED), ToolChoiceMode.TOOL_CHOICE_MODE_AUTO),
        (ToolChoice(function_name="f"), ToolChoiceMode.TOOL_CHOICE_MODE_AUTO),
        (ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE), ToolChoiceMode.TOOL_CHOICE_MODE_NONE),
    ],
)
async def test_forced_choice_of_a_tool_holds_for_the_first_turn(
    store: Store, choice: ToolChoice, later: "ToolChoiceMode.ValueType"
) -> None:
    await add_thread(store, "thread_1", "one")
    assert (await build(store, the_run(tool_choice=choice))).request.tool_choice == choice
    turn = Turn(number=1, seen_sequence=1, items=[])
    second = await build(store, the_run(tool_choice=choice, turns=1), turn)
    assert second.request.tool_choice == ToolChoice(mode=later)


async def test_output_limit_is_what_is_left_of_the_runs_and_never_more_than_the_models(store: Store) -> None:
    await add_thread(store, "thread_1", "one")

    async def limit(own: int | None, allowed: int | None, used: int) -> int | None:
        run = the_run() if allowed is None else the_run(max_completion_tokens=allowed)
        run.usage.completion_tokens = used
        return (await build(store, run, model=card(8_192, own))).request.max_output_tokens

    assert await limit(None, None, 5) is None
    assert await limit(100, None, 5) == 100
    assert await limit(None, 50, 5) == 45
    assert await limit(10, 50, 5) == 10
    assert await limit(None, 50, 60) == 1
