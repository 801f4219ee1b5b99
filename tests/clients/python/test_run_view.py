"""What a run looks like after its events."""

import pytest

from clients.python.story import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    RUN_ID,
    Story,
    call,
    message,
    snapshot,
    taken_over,
    tool_step,
)
from famulus import RunView
from famulus.v1.message_pb2 import MessageState
from famulus.v1.run_event_pb2 import RunEvent, ToolCallDelta
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStepState


def view_of(log: list[RunEvent]) -> RunView:
    view = RunView()
    for event in log:
        view.apply(event)
        assert view.text is not None  # reading in between must not change what comes
    return view


def test_text_grows_with_its_deltas() -> None:
    view = view_of(Story().state(IN_PROGRESS).begin().text("a", "b").log)
    assert view.text == "ab"
    assert view.messages[0].state == MessageState.MESSAGE_STATE_IN_PROGRESS
    assert view.run_id == RUN_ID
    assert not view.finished


def test_a_stored_message_replaces_what_was_shown() -> None:
    assert view_of(Story().begin().text("draft").end("final").log).text == "final"


def test_parts_of_a_message_keep_their_places() -> None:
    story = Story().begin()
    for index, text in ((1, "world"), (0, "hello "), (1, "!")):
        event = RunEvent()
        event.text_delta.message_id, event.text_delta.part_index, event.text_delta.text = "msg_1", index, text
        story.tell(event)
    refusal, note = RunEvent(), RunEvent()
    refusal.refusal_delta.message_id, refusal.refusal_delta.part_index, refusal.refusal_delta.refusal = "msg_1", 2, "no"
    note.annotation_added.message_id, note.annotation_added.part_index = "msg_1", 1
    note.annotation_added.annotation.file_citation.file_id = "file_1"
    [shown] = view_of(story.tell(refusal).tell(note).log).messages
    assert [part.WhichOneof("part") for part in shown.content] == ["text", "text", "refusal"]
    assert [part.text.text for part in shown.content] == ["hello ", "world!", ""]
    assert shown.content[2].refusal.refusal == "no"
    assert shown.content[1].text.annotations[0].file_citation.file_id == "file_1"


@pytest.mark.parametrize("index", [-1, 2**31 - 1])
def test_an_index_that_makes_no_sense_is_ignored(index: int) -> None:
    event = RunEvent(sequence=3)
    event.text_delta.message_id, event.text_delta.part_index, event.text_delta.text = "msg_1", index, "x"
    assert view_of([*Story().begin().log, event]).text == ""


@pytest.mark.parametrize("kept", range(5))
def test_an_attempt_discards_exactly_what_came_behind_a_sequence(kept: int) -> None:
    story = Story().begin().text("a", "b", "c", "d")
    view = view_of(story.takeover(2, 2 + kept, base=100).log)
    assert view.text == "abcd"[:kept]
    assert view.attempt == 2
    for event in Story().takeover(2, 0, base=200).text("x").log[1:]:
        view.apply(event)
    assert view.text == "abcd"[:kept] + "x"


def test_an_attempt_discards_messages_and_steps_that_began_behind_a_sequence() -> None:
    log = taken_over()
    at_takeovers = [view_of(log[: position + 1]) for position, event in enumerate(log) if event.attempt_started.attempt]
    assert [view.text for view in at_takeovers] == ["One", "One"]
    assert [len(view.steps) for view in at_takeovers] == [1, 1]
    assert view_of(log).text == "One\n\nTwo, we say"
    assert [step.id for step in view_of(log).steps] == ["step_1", "step_4"]


def test_an_attempt_discards_reasoning() -> None:
    story = Story()
    for text in ("first ", "second"):
        event = RunEvent()
        event.reasoning_delta.text = text
        story.tell(event)
    assert view_of(story.log).reasoning == "first second"
    assert view_of(story.takeover(2, 1, base=10).log).reasoning == "first "


def test_an_attempt_discards_the_draft_of_a_snapshot_taken_behind_it() -> None:
    stored = message(1, "One", MessageState.MESSAGE_STATE_COMPLETED)
    draft = message(2, "Tw", MessageState.MESSAGE_STATE_IN_PROGRESS)
    log = [snapshot(20, Run(id=RUN_ID, state=IN_PROGRESS), draft, stored)]
    assert view_of(log).text == "Tw\n\nOne"
    assert view_of(log + Story().takeover(2, 20, base=100).log).text == "Tw\n\nOne"
    assert view_of(log + Story().takeover(2, 10, base=100).log).text == "One"


def test_a_snapshot_replaces_everything_and_deltas_go_on_from_it() -> None:
    before = Story().state(IN_PROGRESS).begin().text("lost").log
    draft = message(2, "Tw", MessageState.MESSAGE_STATE_IN_PROGRESS)
    view = view_of([*before, snapshot(20, Run(id=RUN_ID, state=IN_PROGRESS), draft)])
    assert view.text == "Tw"
    assert view.steps == []
    for event in Story().takeover(1, 20, base=20).text("o", number=2).log[1:]:
        view.apply(event)
    assert view.text == "Two"
    assert draft.content[0].text.text == "Tw"


def test_what_was_never_stored_is_gone_when_the_run_ends() -> None:
    log = Story().state(IN_PROGRESS).begin().text("half").state(FAILED).log
    assert view_of(log[:-1]).text == "half"
    view = view_of(log)
    assert view.finished
    assert view.text == ""
    assert view.result().messages == []


def test_arguments_of_tool_calls_grow_in_their_step() -> None:
    started = RunEvent()
    started.step_started.step.CopyFrom(tool_step(1))
    story = Story().tell(started)
    for call_id, name, fragment in (("call_1", "add", '{"a"'), ("call_2", "sub", "{}"), ("call_1", "", ":1}")):
        delta = ToolCallDelta(step_id="step_1", call_id=call_id, name=name, arguments_json_delta=fragment)
        story.tell(RunEvent(tool_call_delta=delta))
    [step] = view_of(story.log).steps
    assert list(step.tool_calls.tool_calls) == [call("call_1", "add", '{"a":1}'), call("call_2", "sub", "{}")]
    assert step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS


def test_the_result_needs_a_run() -> None:
    with pytest.raises(ValueError, match="no event"):
        RunView().result()
    story = Story().begin().end("a").begin(2).end("b", 2).state(COMPLETED)
    assert view_of(story.log).result().text == "a\n\nb"
