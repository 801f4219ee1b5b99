"""The validator of streams must find every kind of violation: else all tests that rely on it prove nothing."""

import pytest

from famulus.v1.message_pb2 import Message, MessagePart, MessageState, TextPart
from famulus.v1.run_event_pb2 import (
    AttemptStarted,
    MessageCompleted,
    MessageStarted,
    RunEvent,
    RunStateChanged,
    Snapshot,
    StepCompleted,
    StepStarted,
    TextDelta,
    ToolCallDelta,
    ToolCallsRequested,
)
from famulus.v1.run_pb2 import RequiredAction, Run, RunState, Usage
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import FunctionCall, ToolCall
from famulus_server.engine.lifecycle import CANCELLED, CANCELLING, COMPLETED, FAILED, IN_PROGRESS, REQUIRES_ACTION
from validator import text_of, validate_final, validate_stream


def story(*events: RunEvent) -> list[RunEvent]:
    """Events, numbered from 1; those that have a sequence keep it, and the others follow it."""
    sequence = 0
    for event in events:
        sequence = event.sequence or sequence + 1
        event.sequence = sequence
        if event.run_state_changed.run.state in (COMPLETED, FAILED, CANCELLED):
            event.run_state_changed.run.last_sequence = sequence
    return list(events)


def state(value: "RunState.ValueType", **fields: object) -> RunEvent:
    return RunEvent(run_state_changed=RunStateChanged(run=Run(state=value, **fields)))  # type: ignore[arg-type]


def message(text: str, of: "MessageState.ValueType" = MessageState.MESSAGE_STATE_COMPLETED) -> Message:
    return Message(id="msg_1", state=of, content=[MessagePart(text=TextPart(text=text))])


def opened() -> list[RunEvent]:
    return [
        RunEvent(step_started=StepStarted(step=RunStep(id="step_1"))),
        RunEvent(message_started=MessageStarted(message=Message(id="msg_1"))),
    ]


def delta(text: str) -> RunEvent:
    return RunEvent(text_delta=TextDelta(message_id="msg_1", text=text))


def closed(text: str) -> list[RunEvent]:
    step = RunStep(id="step_1", state=RunStepState.RUN_STEP_STATE_COMPLETED)
    return [
        RunEvent(message_completed=MessageCompleted(message=message(text))),
        RunEvent(step_completed=StepCompleted(step=step)),
    ]


def attempt(number: int, discards: int, sequence: int = 0) -> RunEvent:
    started = AttemptStarted(attempt=number, discards_after_sequence=discards)
    return RunEvent(sequence=sequence, attempt_started=started)


def good() -> list[RunEvent]:
    return story(state(IN_PROGRESS), *opened(), delta("Good"), delta(" day"), *closed("Good day"), state(COMPLETED))


def started_over(*, text: str = "Good day", number: int = 2, discards: int = 1) -> list[RunEvent]:
    return story(
        state(IN_PROGRESS),
        *opened(),
        delta("Bad"),
        attempt(number, discards),
        *opened(),
        delta("Good day"),
        *closed(text),
        state(COMPLETED),
    )


def test_good_stream_passes() -> None:
    validate_stream(good())
    validate_final(good(), good()[-1].run_state_changed.run, [message("Good day")])
    assert text_of(good()) == "Good day"


def test_every_suffix_of_a_good_stream_passes() -> None:
    for cut in range(len(good())):
        validate_stream(good()[cut:], cut)


def test_every_prefix_of_a_good_stream_passes_only_as_incomplete() -> None:
    for cut in range(len(good())):
        validate_stream(good()[:cut], complete=False)
        with pytest.raises(AssertionError, match="no terminal event"):
            validate_stream(good()[:cut])


def test_discarded_text_is_no_part_of_the_text() -> None:
    validate_stream(started_over())
    assert text_of(started_over()) == "Good day"


def test_takeover_may_jump_ahead() -> None:
    validate_stream(story(state(IN_PROGRESS), *opened(), delta("lost"), attempt(2, 1, sequence=1 << 33), *good_rest()))


def good_rest() -> list[RunEvent]:
    return [*opened(), delta("Good day"), *closed("Good day"), state(COMPLETED)]


def test_snapshot_stands_for_what_is_gone() -> None:
    writing = Snapshot(
        run=Run(state=IN_PROGRESS),
        steps=[RunStep(id="step_1", state=RunStepState.RUN_STEP_STATE_IN_PROGRESS)],
        messages=[message("Good", MessageState.MESSAGE_STATE_IN_PROGRESS)],
    )
    rest = [delta(" day"), *closed("Good day"), state(COMPLETED)]
    validate_stream(story(RunEvent(sequence=7, snapshot=writing), *rest), 3)


def test_snapshot_of_a_finished_run_ends_the_stream() -> None:
    ended = RunEvent(sequence=9, snapshot=Snapshot(run=Run(state=COMPLETED), messages=[message("Good day")]))
    validate_stream([ended], 3)


def test_message_of_a_failed_run_is_dropped() -> None:
    events = story(state(IN_PROGRESS), *opened(), delta("half"), state(FAILED))
    validate_final(events, events[-1].run_state_changed.run, [])
    assert text_of(events) == ""


@pytest.mark.parametrize("lost", range(1, 7))
def test_gap_is_found(lost: int) -> None:
    events = good()
    del events[lost]
    with pytest.raises(AssertionError, match="a gap"):
        validate_stream(events)


def test_missing_first_event_is_found() -> None:
    with pytest.raises(AssertionError, match="a gap"):
        validate_stream(good()[1:])


@pytest.mark.parametrize("twice", range(7))
def test_duplicate_is_found(twice: int) -> None:
    events = good()
    events.insert(twice + 1, events[twice])
    with pytest.raises(AssertionError, match="a duplicate"):
        validate_stream(events)


def test_replayed_event_after_a_resume_is_found() -> None:
    with pytest.raises(AssertionError, match="a duplicate"):
        validate_stream(good()[2:], 3)


def test_wrong_order_is_found() -> None:
    events = good()
    events[3], events[4] = events[4], events[3]
    with pytest.raises(AssertionError, match="a gap"):
        validate_stream(events)


def test_second_terminal_event_is_found() -> None:
    with pytest.raises(AssertionError, match="after the terminal"):
        validate_stream(story(*good(), state(COMPLETED, id="again")))


def test_event_after_the_terminal_one_is_found() -> None:
    with pytest.raises(AssertionError, match="after the terminal"):
        validate_stream(story(*good(), delta("late")))


def test_deltas_that_are_not_the_message_are_found() -> None:
    with pytest.raises(AssertionError, match="deltas say 'Good'"):
        validate_stream(story(state(IN_PROGRESS), *opened(), delta("Good"), *closed("Good day"), state(COMPLETED)))


def test_text_kept_from_an_earlier_attempt_is_found() -> None:
    with pytest.raises(AssertionError, match="deltas say 'Good day'"):
        validate_stream(started_over(text="BadGood day"))


def test_attempts_out_of_order_are_found() -> None:
    events = story(state(IN_PROGRESS), attempt(3, 1), attempt(2, 1), state(FAILED))
    with pytest.raises(AssertionError, match="attempt 2 after 3"):
        validate_stream(events)


def test_attempt_that_takes_back_what_was_stored_is_found() -> None:
    events = story(state(IN_PROGRESS), *opened(), delta("Good"), *closed("Good"), attempt(2, 1), state(COMPLETED))
    with pytest.raises(AssertionError, match="takes back what was stored"):
        validate_stream(events)


def test_delta_of_a_discarded_message_is_found() -> None:
    events = story(state(IN_PROGRESS), *opened(), delta("Bad"), attempt(2, 1), delta(" luck"), state(FAILED))
    with pytest.raises(AssertionError, match="was discarded"):
        validate_stream(events)


def test_message_that_never_ends_is_found() -> None:
    with pytest.raises(AssertionError, match="never ended"):
        validate_stream(story(state(IN_PROGRESS), *opened(), delta("Good"), state(COMPLETED)))


@pytest.mark.parametrize(("old", "new"), [(CANCELLING, COMPLETED), (REQUIRES_ACTION, COMPLETED)])
def test_illegal_transition_is_found(old: "RunState.ValueType", new: "RunState.ValueType") -> None:
    call = ToolCall(id="call_1", function=FunctionCall(name="f", arguments_json="{}"))
    asked = RunEvent(tool_calls_requested=ToolCallsRequested(tool_calls=[call]))
    with pytest.raises(AssertionError, match="the table does not allow"):
        validate_stream(
            story(state(IN_PROGRESS), asked, state(old, required_action=RequiredAction(tool_calls=[call])), state(new))
        )


def test_birth_in_a_final_state_is_found() -> None:
    with pytest.raises(AssertionError, match="born as"):
        validate_stream(story(state(COMPLETED)))


def test_delta_of_a_run_that_nobody_works_on_is_found() -> None:
    with pytest.raises(AssertionError, match="text_delta while the run is"):
        validate_stream(story(state(IN_PROGRESS), *opened(), state(CANCELLING), delta("late"), state(CANCELLED)))


def test_call_with_other_arguments_than_its_deltas_is_found() -> None:
    call = ToolCall(id="call_1", function=FunctionCall(name="f", arguments_json='{"a": 2}'))
    told = ToolCallDelta(step_id="step_1", call_id="call_1", name="f", arguments_json_delta='{"a": 1}')
    with pytest.raises(AssertionError, match="deltas say"):
        validate_stream(
            story(
                state(IN_PROGRESS),
                opened()[0],
                RunEvent(tool_call_delta=told),
                RunEvent(tool_calls_requested=ToolCallsRequested(tool_calls=[call])),
            )
        )


def test_end_that_is_not_the_stored_last_sequence_is_found() -> None:
    events = good()
    events[-1].run_state_changed.run.last_sequence += 1
    with pytest.raises(AssertionError, match="says last_sequence"):
        validate_stream(events)


def test_stored_run_that_ended_otherwise_is_found() -> None:
    with pytest.raises(AssertionError, match="ends otherwise"):
        validate_final(good(), Run(state=CANCELLED), [message("Good day")])


def test_usage_that_is_not_the_stored_one_is_found() -> None:
    with pytest.raises(AssertionError, match="usage told"):
        validate_final(good(), Run(state=COMPLETED, usage=Usage(total_tokens=3)), [message("Good day")])


@pytest.mark.parametrize("stored", [[], [message("Good")], [message("Good day"), message("Good day")]])
def test_stored_messages_that_are_not_those_told_are_found(stored: list[Message]) -> None:
    with pytest.raises(AssertionError, match="messages told"):
        validate_final(good(), Run(state=COMPLETED), stored)
