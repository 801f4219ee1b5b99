"""What a model turn leaves behind, as it comes in and when it ends."""

import json
from typing import Any

import pytest

from contract.samples import MovableClock
from famulus.v1.message_pb2 import Annotation, MessageIncompleteReason, MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunErrorCode, Usage
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus_server.engine import turn
from famulus_server.engine.clock import TimeOrderedIds
from famulus_server.engine.packing import Packer, events_of
from famulus_server.engine.turn import TurnRecorder
from famulus_server.errors import ModelProtocolError
from famulus_server.ports import (
    AnnotationChunk,
    CallChunk,
    ModelEvent,
    ReasoningChunk,
    RefusalChunk,
    Retrying,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)


def recorder(*, taken: set[str] | None = None, position: int = 1, **run: Any) -> TurnRecorder:
    clock = MovableClock()
    tools = [Tool(function=FunctionTool(name="f"))]
    fields: dict[str, Any] = {"id": "run_1", "thread_id": "thread_1", "assistant_id": "asst_1", "tools": tools}
    given = Run(**(fields | run))
    ids = TimeOrderedIds(clock=clock)
    return TurnRecorder(run=given, next_position=position, taken_call_ids=taken or set(), clock=clock, ids=ids)


def ended(*items: dict[str, Any], usage: Usage | None = None) -> TurnEnded:
    return TurnEnded(TurnOutcome.COMPLETED, items, usage)


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": arguments}


def take(made: TurnRecorder, events: list[ModelEvent]) -> list[RunEvent]:
    packer = Packer(last_sequence=0, now=MovableClock().now())
    made.take(events, packer)
    return events_of(packer.close())


def kinds(events: list[RunEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


def test_text_opens_step_and_message_once() -> None:
    made = recorder()
    assert kinds(take(made, [TextChunk(0, 0, "a"), TextChunk(0, 0, "b")])) == [
        "step_started",
        "message_started",
        "text_delta",
        "text_delta",
    ]
    assert kinds(take(made, [TextChunk(0, 0, "c"), ended(said("abc"))])) == ["text_delta"]
    result = made.finish()
    [message] = result.messages
    assert message.content[0].text.text == "abc"
    assert message.state == MessageState.MESSAGE_STATE_COMPLETED
    assert (message.run_id, message.assistant_id, message.thread_id) == ("run_1", "asst_1", "thread_1")
    [step] = result.steps
    assert (step.message_creation.message_id, step.position, step.turn) == (message.id, 1, 1)


def test_two_output_messages_become_two_messages_in_order() -> None:
    made = recorder(position=4)
    take(made, [TextChunk(0, 0, "one"), TextChunk(1, 0, "two"), ended(said("one"), said("two"))])
    result = made.finish()
    assert [message.content[0].text.text for message in result.messages] == ["one", "two"]
    assert [step.position for step in result.steps] == [4, 5]


def test_parts_are_indexed_in_order_of_appearance() -> None:
    made = recorder()
    events = take(made, [TextChunk(0, 2, "a"), RefusalChunk(0, 5, "no"), TextChunk(0, 2, "b")])
    indexes = [event.text_delta.part_index or event.refusal_delta.part_index for event in events[2:]]
    assert indexes == [0, 1, 0]
    take(made, [ended(said("ab"))])
    [message] = made.finish().messages
    assert [part.WhichOneof("part") for part in message.content] == ["text", "refusal"]
    assert message.content[0].text.text == "ab"


def test_annotations_are_kept_with_their_part() -> None:
    made = recorder()
    note = Annotation(text="a", start_index=0, end_index=1)
    events = take(made, [TextChunk(0, 0, "a"), AnnotationChunk(0, 0, note), ended(said("a"))])
    assert events[-1].annotation_added.annotation == note
    assert list(made.finish().messages[0].content[0].text.annotations) == [note]


def test_reasoning_is_shown_only_where_it_is_wanted_and_never_stored() -> None:
    assert take(recorder(), [ReasoningChunk("hm")]) == []
    wanted = recorder(stream_reasoning=True)
    assert kinds(take(wanted, [ReasoningChunk("hm"), ended()])) == ["reasoning_delta"]
    assert wanted.heard
    assert wanted.finish().messages == []


def test_retry_tells_why_and_how_long_and_shows_nothing_of_the_turn() -> None:
    made = recorder()
    [event] = take(made, [Retrying(RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED, 1.25)])
    assert event.retry_scheduled.delay.ToMilliseconds() == 1_250
    assert not made.heard


def test_call_is_streamed_and_becomes_an_open_call() -> None:
    made = recorder()
    events = take(made, [CallChunk(0, "c1", "f", ""), CallChunk(0, "", "", '{"a":'), CallChunk(0, "", "", "1}")])
    assert kinds(events) == ["step_started", "tool_call_delta", "tool_call_delta", "tool_call_delta"]
    assert [event.tool_call_delta.name for event in events[1:]] == ["f", "", ""]
    take(made, [ended(called("c1", '{"a":1}'))])
    result = made.finish()
    [call] = result.open_calls
    assert (call.id, call.function.name, call.function.arguments_json) == ("c1", "f", '{"a":1}')
    assert result.has_calls
    [step] = result.steps
    assert step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS


def test_call_without_arguments_gets_an_empty_object() -> None:
    made = recorder()
    take(made, [CallChunk(0, "c1", "f", ""), ended(called("c1", ""))])
    assert made.finish().open_calls[0].function.arguments_json == "{}"


@pytest.mark.parametrize("bad", ["", "taken", "x" * 129, "a\nb", "\0", "\x85"])
def test_call_id_that_cannot_be_used_is_replaced_in_call_and_item_alike(bad: str) -> None:
    taken = {"taken"}
    made = recorder(taken=taken)
    [_, delta] = take(made, [CallChunk(0, bad, "f", "{}")])
    take(made, [ended(called(bad))])
    result = made.finish()
    [call] = result.open_calls
    assert call.id == delta.tool_call_delta.call_id != bad
    assert result.items[0]["call_id"] == call.id
    # A turn that is thrown away takes nothing.
    assert taken == {"taken"}


def test_calls_with_problems_are_answered_in_the_items_at_once() -> None:
    made = recorder()
    take(made, [CallChunk(0, "c1", "f", "nonsense"), CallChunk(1, "c2", "g", "{}")])
    take(made, [ended(called("c1", "nonsense"), called("c2"))])
    result = made.finish()
    assert result.open_calls == []
    assert result.has_calls
    assert [item["type"] for item in result.items] == ["function_call"] * 2 + ["function_call_output"] * 2
    assert all("error" in json.loads(item["output"]) for item in result.items[2:])
    [step] = result.steps
    assert step.state == RunStepState.RUN_STEP_STATE_COMPLETED


def test_built_in_call_is_told_as_a_step_and_asks_nobody() -> None:
    made = recorder()
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    events = take(made, [TextChunk(0, 0, "a"), ended(said("a"), search)])
    assert kinds(events)[-1] == "step_started"
    result = made.finish()
    assert not result.has_calls
    [call] = result.steps[1].tool_calls.tool_calls
    assert (call.built_in.type, json.loads(call.built_in.details_json)) == ("web_search_call", search)
    assert result.steps[1].state == RunStepState.RUN_STEP_STATE_COMPLETED
    assert search in result.items


def test_items_of_unknown_kinds_are_kept_as_they_came() -> None:
    made = recorder()
    odd: list[dict[str, Any]] = [{"type": "novelty", "x": [1, {"y": None}]}, {"type": 7}, {}]
    take(made, [ended(*odd)])
    result = made.finish()
    assert result.items == odd
    assert result.steps == []


def test_usage_is_noted_on_the_first_step_only() -> None:
    made = recorder()
    usage = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
    take(made, [TextChunk(0, 0, "a"), CallChunk(1, "c", "f", "{}"), ended(said("a"), called("c"), usage=usage)])
    first, second = made.finish().steps
    assert first.usage == usage
    assert not second.HasField("usage")


def test_turn_that_is_broken_off_keeps_its_text_and_drops_its_calls() -> None:
    made = recorder()
    take(made, [TextChunk(0, 0, "half a"), CallChunk(1, "c", "f", '{"a"')])
    reason = MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED
    result = made.abandon(reason, RunStepState.RUN_STEP_STATE_CANCELLED)
    [message] = result.messages
    assert message.content[0].text.text == "half a"
    assert (message.state, message.incomplete_reason) == (MessageState.MESSAGE_STATE_INCOMPLETE, reason)
    assert [step.state for step in result.steps] == [RunStepState.RUN_STEP_STATE_CANCELLED] * 2
    assert (result.open_calls, result.items) == ([], [])
    assert all(step.HasField("end_time") for step in result.steps)


def test_draft_shows_what_there_is_without_touching_it() -> None:
    made = recorder()
    take(made, [TextChunk(0, 0, "half "), CallChunk(1, "c", "f", '{"a"')])
    draft = made.draft()
    [message] = draft.messages
    assert message.state == MessageState.MESSAGE_STATE_IN_PROGRESS
    assert message.content[0].text.text == "half "
    assert len(draft.steps) == 2
    take(made, [TextChunk(0, 0, "text"), ended(said("half text"), called("c", '{"a"'))])
    assert message.content[0].text.text == "half "
    assert made.finish().messages[0].content[0].text.text == "half text"


def test_text_without_bound_is_a_failure_of_the_model() -> None:
    made = recorder()
    take(made, [TextChunk(0, 0, "x" * 1_000_000)])
    with pytest.raises(ModelProtocolError, match="characters"):
        take(made, [TextChunk(0, 0, "x")])


def test_calls_without_bound_are_a_failure_of_the_model() -> None:
    made = recorder()
    take(made, [CallChunk(number, f"c{number}", "f", "{}") for number in range(1_024)])
    with pytest.raises(ModelProtocolError, match="calls"):
        take(made, [CallChunk(1_024, "one more", "f", "{}")])


def test_usage_adds_up_and_one_estimate_makes_the_sum_one() -> None:
    total = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, cached_prompt_tokens=1, reasoning_tokens=1)
    turn.add_usage(total, turn.estimated_usage(10, 20))
    assert total == Usage(
        prompt_tokens=11,
        completion_tokens=22,
        total_tokens=33,
        cached_prompt_tokens=1,
        reasoning_tokens=1,
        estimated=True,
    )
