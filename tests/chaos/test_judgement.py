"""The judge must be able to find something: what it looks for, it finds."""

import pytest

from chaos.audit import Stored, audit
from chaos.journal import Journal, KnownRun
from chaos.script import question
from famulus.v1.message_pb2 import Message, MessagePart, TextPart
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent
from famulus.v1.run_pb2 import Run, RunState
from validator import validate_jumps

ASKED = question("swift", "t")


def message(text: str, *, sequence: int, run_id: str = "") -> Message:
    return Message(
        id=f"msg_{sequence}", sequence=sequence, run_id=run_id, content=[MessagePart(text=TextPart(text=text))]
    )


def completed(**fields: object) -> Run:
    run = Run(id="run_1", thread_id="thread_1", state=RunState.RUN_STATE_COMPLETED, metadata={"request": "t"})
    run.start_time.GetCurrentTime()
    run.MergeFrom(Run(**fields))  # type: ignore[arg-type]
    return run


def rules(
    *messages: Message, runs: list[Run] | None = None, kind: str = "swift", following: int = 3, request: str = "run_1"
) -> set[str]:
    """The rules that are broken where one run on one thread was acknowledged and this is stored."""
    journal = Journal()
    journal.runs["run_1"] = KnownRun(id="run_1", thread_id="thread_1", request_id="t", kind=kind, said=ASKED)
    stored = Stored(
        runs={run.id: run for run in ([completed()] if runs is None else runs)},
        active=[],
        messages={"thread_1": list(messages)},
        next_sequences={"thread_1": following},
        requests={"t": request},
        orphans=[],
    )
    audit(stored, journal)
    return {violation.rule for violation in journal.violations}


ASKED_FIRST = message(ASKED, sequence=1)
ANSWERED = message(f"You said: {ASKED}", sequence=2, run_id="run_1")


def test_thread_as_it_should_be_breaks_no_rule() -> None:
    assert rules(ASKED_FIRST, ANSWERED) == set()


def test_lost_run_is_found() -> None:
    assert rules(ASKED_FIRST, ANSWERED, runs=[]) == {"an acknowledged run is lost"}


def test_second_run_of_one_request_is_found() -> None:
    other = completed(id="run_2", state=RunState.RUN_STATE_FAILED)
    assert rules(ASKED_FIRST, ANSWERED, runs=[completed(), other]) == {"one request id, several runs"}


def test_request_id_that_names_another_run_is_found() -> None:
    assert rules(ASKED_FIRST, ANSWERED, request="run_2") == {"a request id is not kept with its run"}


def test_half_an_answer_is_found() -> None:
    half = message("You said: swift", sequence=2, run_id="run_1")
    assert rules(ASKED_FIRST, half) == {"a completed run wrote something else"}


def test_truncated_answer_that_counts_as_complete_is_found() -> None:
    assert "completed, though the model's stream was truncated" in rules(ASKED_FIRST, ANSWERED, kind="truncated-eof")


def test_gap_between_messages_is_found() -> None:
    late = message(f"You said: {ASKED}", sequence=3, run_id="run_1")
    assert rules(ASKED_FIRST, late, following=4) == {"sequences of messages have gaps"}


def test_message_stored_twice_is_found() -> None:
    again = message(ASKED, sequence=3)
    assert rules(ASKED_FIRST, ANSWERED, again, following=4) == {"a message is stored twice"}


def test_cancel_that_nobody_asked_for_is_found() -> None:
    run = completed(state=RunState.RUN_STATE_CANCELLED)
    assert rules(ASKED_FIRST, ANSWERED, runs=[run]) == {"a run was cancelled that nobody cancelled"}


def test_attempt_that_jumps_over_what_is_stored_is_found() -> None:
    jump = RunEvent(sequence=1 << 33, attempt_started=AttemptStarted(attempt=2, discards_after_sequence=3))
    validate_jumps([RunEvent(sequence=number) for number in (1, 2, 3)] + [jump])
    with pytest.raises(AssertionError, match="events behind 2 up to 3 are missing"):
        validate_jumps([RunEvent(sequence=1), RunEvent(sequence=2), jump])
