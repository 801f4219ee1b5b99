"""What every stream of run events must fulfil, whoever watched it and whatever broke meanwhile (contract 11-13, 16-18).

Pure functions over what a client saw. An AssertionError says what is wrong and shows the events around it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from famulus.v1.message_pb2 import Message, MessageState
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent, Snapshot
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import RunStepState
from famulus.v1.tool_pb2 import ToolCall
from famulus_server.engine import lifecycle

_SHOWN_AROUND = 4
# Made by a worker that is at a model turn; nobody else may publish them.
_OF_A_TURN = {
    "step_started",
    "message_started",
    "text_delta",
    "refusal_delta",
    "annotation_added",
    "tool_call_delta",
    "reasoning_delta",
    "retry_scheduled",
    "attempt_started",
}
# They tell of something that is stored, so no attempt can take them back.
_STORED = {"message_completed", "step_completed", "tool_calls_requested", "tool_output_received"}


def validate_stream(events: Sequence[RunEvent], after_sequence: int = 0, *, complete: bool = True) -> None:
    """Raises AssertionError unless the events are what a watcher behind `after_sequence` may see. `complete`: the
    stream ended OK, so the terminal event must be there; otherwise it was broken off somewhere."""
    _read(events, after_sequence, complete)


def validate_final(events: Sequence[RunEvent], run: Run, messages: Sequence[Message]) -> None:
    """Raises AssertionError unless a whole stream, from its first event, tells of this stored run, and of exactly the
    messages that the run has stored, in their order."""
    reading = _read(events, 0, True)
    told = _last_run(events[-1])
    assert told.state == run.state, f"the stream ends otherwise than the stored run:\n{told}\n{run}"
    assert told.usage == run.usage, f"usage told: {told.usage}\nusage stored: {run.usage}"
    assert told.error == run.error, f"error told: {told.error}\nerror stored: {run.error}"
    stored = [(message.id, _text(message), message.state) for message in messages]
    seen = [(message.id, reading.texts[message.id], message.state) for message in reading.completed.values()]
    assert seen == stored, f"messages told: {seen}\nmessages stored: {stored}"


def validate_jumps(events: Sequence[RunEvent], after_sequence: int = 0) -> None:
    """Raises AssertionError where a new attempt jumps over events that it does not take back: these are missing."""
    for index, event in enumerate(events):
        discards = event.attempt_started.discards_after_sequence
        if event.HasField("attempt_started") and discards > after_sequence:
            raise AssertionError(
                f"events behind {after_sequence} up to {discards} are missing\n{_around(events, index)}"
            )
        after_sequence = event.sequence


def text_of(events: Sequence[RunEvent]) -> str:
    """The text that a watcher from the first event on has before it: deltas joined, without what was discarded."""
    return "".join(_read(events, 0, False).texts.values())


@dataclass(slots=True)
class _Reading:
    """What a watcher knows. `open_*` holds what has begun and not ended, with the sequence at which it began."""

    sequence: int
    whole: bool  # the watcher has seen everything, or a Snapshot of it
    state: "RunState.ValueType" = RunState.RUN_STATE_UNSPECIFIED
    attempt: int = 0
    ended: bool = False
    stored_sequence: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    open_messages: dict[str, int] = field(default_factory=dict)
    open_steps: dict[str, int] = field(default_factory=dict)
    completed: dict[str, Message] = field(default_factory=dict)
    completed_steps: set[str] = field(default_factory=set)
    arguments: dict[str, str] = field(default_factory=dict)
    requested: dict[str, ToolCall] = field(default_factory=dict)

    def take(self, event: RunEvent) -> None:
        kind = event.WhichOneof("event")
        self._check_sequence(event, kind)
        assert not self.ended, "an event after the terminal one"
        self.sequence = event.sequence
        if kind in _STORED:
            self.stored_sequence = event.sequence
        if kind in _OF_A_TURN and self.state:
            assert self.state == lifecycle.IN_PROGRESS, f"{kind} while the run is {RunState.Name(self.state)}"
        match kind:
            case "run_state_changed":
                self._change(event.run_state_changed.run, event.sequence)
            case "step_started":
                step = event.step_started.step
                assert step.id not in self.open_steps | dict.fromkeys(self.completed_steps), "the step started before"
                self.open_steps[step.id] = event.sequence
            case "step_completed":
                step = event.step_completed.step
                assert step.state != RunStepState.RUN_STEP_STATE_IN_PROGRESS, "a completed step that goes on"
                self._end(step.id, self.open_steps, self.completed_steps, "step")
                self.completed_steps.add(step.id)
            case "message_started":
                message = event.message_started.message
                assert message.id not in self.texts, "the message started before"
                self.open_messages[message.id] = event.sequence
                self.texts[message.id] = self.refusals[message.id] = ""
            case "message_completed":
                self._complete(event.message_completed.message)
            case "text_delta":
                self._grow(self.texts, event.text_delta.message_id, event.text_delta.text)
            case "refusal_delta":
                self._grow(self.refusals, event.refusal_delta.message_id, event.refusal_delta.refusal)
            case "tool_call_delta":
                delta = event.tool_call_delta
                assert not self.whole or delta.step_id in self.open_steps, "a tool call without its step"
                self.arguments[delta.call_id] = self.arguments.get(delta.call_id, "") + delta.arguments_json_delta
            case "tool_calls_requested":
                self._request(event.tool_calls_requested.tool_calls)
            case "tool_output_received":
                self._receive(event.tool_output_received.tool_calls)
            case "attempt_started":
                self._start_over(event.attempt_started)
            case "snapshot":
                self._replace(event.snapshot)

    def _check_sequence(self, event: RunEvent, kind: str | None) -> None:
        assert event.sequence > self.sequence, f"sequence {event.sequence} after {self.sequence}: a duplicate, or order"
        # A takeover goes on far behind what the lost worker published, and a Snapshot stands for what is gone.
        if kind not in ("attempt_started", "snapshot"):
            assert event.sequence == self.sequence + 1, f"sequence {event.sequence} after {self.sequence}: a gap"

    def _change(self, run: Run, sequence: int) -> None:
        if self.state:
            allowed = lifecycle.TRANSITIONS[self.state]
            change = f"{RunState.Name(self.state)} -> {RunState.Name(run.state)}"
            assert run.state in allowed, f"the table does not allow {change}"
        elif self.whole:
            assert run.state in lifecycle.BORN, f"born as {RunState.Name(run.state)}"
        if run.state == lifecycle.REQUIRES_ACTION:
            assert run.required_action.tool_calls, "requires action, and names none"
            if self.whole:
                asked = [call.id for call in run.required_action.tool_calls]
                assert asked == list(self.requested), f"requires {asked}, requested were {list(self.requested)}"
        self.state = run.state
        if run.state in lifecycle.FINAL:
            assert run.last_sequence == sequence, f"ends at {sequence}, but says last_sequence {run.last_sequence}"
            self._finish(run)

    def _finish(self, run: Run) -> None:
        self.ended = True
        if run.rolled_back:
            self._discard(0)  # the steps are stored, the messages are not
        if run.state == lifecycle.FAILED:
            self._discard(self.stored_sequence)
        assert not self.open_messages, f"messages that never ended: {list(self.open_messages)}"
        assert not self.open_steps, f"steps that never ended: {list(self.open_steps)}"

    def _end(self, item: str, opened: dict[str, int], ended: Iterable[str], what: str) -> None:
        assert item not in ended, f"the {what} {item} ended before"
        # Steps of waiting calls were stored while going on, so they may have been started in an earlier attempt.
        assert not self.whole or item in opened, f"the {what} {item} ends without having started"
        opened.pop(item, None)

    def _complete(self, message: Message) -> None:
        began = message.id in self.open_messages
        self._end(message.id, self.open_messages, self.completed, "message")
        assert message.state != MessageState.MESSAGE_STATE_IN_PROGRESS, "a completed message that goes on"
        text = _text(message)
        if began:
            assert self.texts[message.id] == text, f"deltas say {self.texts[message.id]!r}, the message {text!r}"
            refusal = "".join(part.refusal.refusal for part in message.content)
            assert self.refusals[message.id] == refusal, "the deltas of the refusal are not the refusal"
        self.texts[message.id] = text
        self.completed[message.id] = message

    def _grow(self, texts: dict[str, str], message_id: str, text: str) -> None:
        assert message_id not in self.completed, "a delta of a completed message"
        if message_id in self.open_messages:
            texts[message_id] += text
        else:
            assert not self.whole, f"a delta of the message {message_id}, which has not started or was discarded"

    def _request(self, calls: Iterable[ToolCall]) -> None:
        self.requested = {call.id: call for call in calls}
        assert self.requested, "no call is requested"
        for call in self.requested.values():
            assert not call.function.HasField("output"), f"the call {call.id} has an output already"
            assert not call.function.problem, f"the call {call.id} has a problem, and is nobody's to answer"
            if self.whole:
                told, stored = self.arguments.get(call.id) or "{}", call.function.arguments_json
                assert told == stored, f"deltas say {told!r}, the call {stored!r}"

    def _receive(self, calls: Iterable[ToolCall]) -> None:
        received = {call.id for call in calls if call.function.HasField("output")}
        missing = set(self.requested) - received
        assert not missing, f"outputs came in, but not those of {missing}"
        self.requested = {}

    def _start_over(self, started: AttemptStarted) -> None:
        assert started.attempt > self.attempt, f"attempt {started.attempt} after {self.attempt}"
        assert started.discards_after_sequence < self.sequence, "it discards itself"
        assert self.stored_sequence <= started.discards_after_sequence, (
            f"it takes back what was stored at {self.stored_sequence}"
        )
        self.attempt = started.attempt
        self._discard(started.discards_after_sequence)

    def _discard(self, after: int) -> None:
        for message_id in [key for key, began in self.open_messages.items() if began > after]:
            del self.open_messages[message_id], self.texts[message_id], self.refusals[message_id]
        for step_id in [key for key, began in self.open_steps.items() if began > after]:
            del self.open_steps[step_id]
        self.arguments.clear()

    def _replace(self, snapshot: Snapshot) -> None:
        going_on = MessageState.MESSAGE_STATE_IN_PROGRESS
        self.whole, self.state = True, snapshot.run.state
        # Its attempt is not taken over: attempts are stored before their AttemptStarted is told, which may still come.
        self.texts = {message.id: _text(message) for message in snapshot.messages}
        self.refusals = {m.id: "".join(part.refusal.refusal for part in m.content) for m in snapshot.messages}
        self.open_messages = {m.id: self.sequence for m in snapshot.messages if m.state == going_on}
        self.completed = {m.id: m for m in snapshot.messages if m.state != going_on}
        step_goes_on = RunStepState.RUN_STEP_STATE_IN_PROGRESS
        self.open_steps = {step.id: self.sequence for step in snapshot.steps if step.state == step_goes_on}
        self.completed_steps = {step.id for step in snapshot.steps if step.state != step_goes_on}
        self.requested = {call.id: call for call in snapshot.run.required_action.tool_calls}
        # Arguments under way are no part of a Snapshot: they cannot be compared any more.
        self.arguments = {}
        self.ended = snapshot.run.state in lifecycle.FINAL


def _read(events: Sequence[RunEvent], after_sequence: int, complete: bool) -> _Reading:
    reading = _Reading(sequence=after_sequence, whole=after_sequence == 0)
    for index, event in enumerate(events):
        try:
            reading.take(event)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{_around(events, index)}") from None
    assert reading.ended or not complete, f"no terminal event\n{_around(events, len(events) - 1)}"
    return reading


def _last_run(event: RunEvent) -> Run:
    return event.snapshot.run if event.HasField("snapshot") else event.run_state_changed.run


def _text(message: Message) -> str:
    return "".join(part.text.text for part in message.content)


def _around(events: Sequence[RunEvent], index: int) -> str:
    """The events before and after one, a line each."""
    start = max(0, index - _SHOWN_AROUND)
    lines = []
    for number, event in enumerate(events[start : index + _SHOWN_AROUND + 1], start):
        text = str(event).replace("\n", " ")
        lines.append(f"{'>' if number == index else ' '} {text[:160]}")
    return "\n".join(lines)
