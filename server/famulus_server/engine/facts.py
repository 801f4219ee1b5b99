"""Making run events. Sequences are given here, in the order of the calls (contract 11)."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.duration_pb2 import Duration

from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import (
    AttemptStarted,
    RetryScheduled,
    RunEvent,
    ToolCallsRequested,
    ToolOutputReceived,
)
from famulus.v1.run_pb2 import Run, RunErrorCode
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.tool_pb2 import ToolCall
from famulus_server.engine.clock import timestamp

# A takeover cannot know what a dead worker published: it goes on far behind whatever that can have been.
_ATTEMPT_STRIDE = 1 << 32


def sequence_base(attempt: int) -> int:
    """The sequence behind which a takeover, which is attempt number `attempt`, starts to count."""
    return attempt * _ATTEMPT_STRIDE


def number(events: Sequence[RunEvent], last_sequence: int, now: datetime) -> int:
    """Gives events a time and the sequences behind `last_sequence`; returns the last one given."""
    moment = timestamp(now)
    for event in events:
        last_sequence += 1
        event.sequence = last_sequence
        event.event_time.CopyFrom(moment)
    return last_sequence


def state_changed(run: Run) -> RunEvent:
    """The fact that a run has a new state."""
    # Filled in place: made of parts it would be copied for each of them.
    event = RunEvent()
    event.run_state_changed.run.CopyFrom(run)
    return event


def step_completed(step: RunStep) -> RunEvent:
    """The fact that a step ended."""
    event = RunEvent()
    event.step_completed.step.CopyFrom(step)
    return event


def message_completed(message: Message) -> RunEvent:
    """The fact that a message is stored."""
    event = RunEvent()
    event.message_completed.message.CopyFrom(message)
    return event


def calls_requested(calls: Sequence[ToolCall]) -> RunEvent:
    """The fact that a run waits for outputs."""
    return RunEvent(tool_calls_requested=ToolCallsRequested(tool_calls=calls))


def outputs_received(calls: Sequence[ToolCall]) -> RunEvent:
    """The fact that outputs came in."""
    return RunEvent(tool_output_received=ToolOutputReceived(tool_calls=calls))


def retry_scheduled(reason: "RunErrorCode.ValueType", seconds: float) -> RunEvent:
    """The fact that a model will be asked again after a while."""
    delay = Duration()
    delay.FromMilliseconds(round(seconds * 1_000))
    return RunEvent(retry_scheduled=RetryScheduled(reason=reason, delay=delay))


def attempt_started(attempt: int, discards_after_sequence: int) -> RunEvent:
    """The fact that a worker started over on a turn."""
    return RunEvent(attempt_started=AttemptStarted(attempt=attempt, discards_after_sequence=discards_after_sequence))
