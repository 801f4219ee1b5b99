"""How a run reads on a terminal."""

import pytest
from google.protobuf.duration_pb2 import Duration

from famulus.v1.message_pb2 import Message, MessagePart, TextPart
from famulus.v1.run_event_pb2 import (
    AttemptStarted,
    MessageCompleted,
    RetryScheduled,
    RunEvent,
    RunStateChanged,
    Snapshot,
    TextDelta,
)
from famulus.v1.run_pb2 import (
    RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
    RUN_STATE_FAILED,
    RUN_STATE_INCOMPLETE,
    Run,
    RunError,
)
from famulus_server.cli.transcript import Transcript, describe_end

TEXT = [RunEvent(sequence=3, text_delta=TextDelta(text=text)) for text in ("Hel", "lo")]
STORED = RunEvent(sequence=5, message_completed=MessageCompleted())


def show(*events: RunEvent, details: bool) -> None:
    transcript = Transcript(details=details)
    for event in events:
        transcript.show(event)


def test_text_comes_as_it_is_and_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(*TEXT, STORED, details=False)
    assert capsys.readouterr() == ("Hello\n", "")


def test_details_have_a_line_with_the_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Run(state=RUN_STATE_FAILED, error=RunError(message="the model failed"))
    show(*TEXT, RunEvent(sequence=4, run_state_changed=RunStateChanged(run=failed)), details=True)
    assert capsys.readouterr().out == "        Hello\n     4  run failed: the model failed\n"


def test_text_that_begins_again_is_told_apart_from_what_was_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        TEXT[0],
        RunEvent(attempt_started=AttemptStarted(attempt=2)),
        *TEXT,
        RunEvent(retry_scheduled=RetryScheduled(delay=Duration(seconds=2))),
        details=False,
    )
    out, err = capsys.readouterr()
    assert out == "Hel\nHello\n"
    assert "attempt 2; the text begins again" in err
    assert "asked again in 2.0 s" in err


def test_snapshot_shows_the_messages_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    message = Message(content=[MessagePart(text=TextPart(text="so far"))])
    show(RunEvent(sequence=9, snapshot=Snapshot(messages=[message])), details=False)
    assert capsys.readouterr().out == "so far"


def test_unknown_kind_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    show(RunEvent(sequence=1), details=True)
    assert capsys.readouterr() == ("", "")


def test_end_is_told_with_its_reason() -> None:
    run = Run(state=RUN_STATE_INCOMPLETE, incomplete_reason=RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS)
    assert describe_end(run) == "incomplete: max completion tokens"
