"""Event logs to tell in tests."""

from collections.abc import Sequence

from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, MessageState, TextPart
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import MessageCreation, RunStep, RunStepState, ToolCallBatch
from famulus.v1.tool_pb2 import FunctionCall, ToolCall

QUEUED = RunState.RUN_STATE_QUEUED
IN_PROGRESS = RunState.RUN_STATE_IN_PROGRESS
REQUIRES_ACTION = RunState.RUN_STATE_REQUIRES_ACTION
COMPLETED = RunState.RUN_STATE_COMPLETED
FAILED = RunState.RUN_STATE_FAILED
RUN_ID = "run_1"


class Story:
    """Writes a log, one event per call."""

    def __init__(self) -> None:
        self.log: list[RunEvent] = []

    @property
    def last(self) -> int:
        return self.log[-1].sequence if self.log else 0

    def tell(self, event: RunEvent, *, sequence: int | None = None) -> "Story":
        event.sequence = sequence or self.last + 1
        self.log.append(event)
        return self

    def state(self, state: "RunState.ValueType", calls: Sequence[ToolCall] = ()) -> "Story":
        event = RunEvent()
        event.run_state_changed.run.CopyFrom(Run(id=RUN_ID, state=state, last_sequence=self.last + 1))
        event.run_state_changed.run.required_action.tool_calls.extend(calls)
        return self.tell(event)

    def begin(self, number: int = 1) -> "Story":
        """Starts a step that writes a message."""
        step, event = RunEvent(), RunEvent()
        step.step_started.step.CopyFrom(message_step(number, RunStepState.RUN_STEP_STATE_IN_PROGRESS))
        event.message_started.message.CopyFrom(message(number, "", MessageState.MESSAGE_STATE_IN_PROGRESS))
        return self.tell(step).tell(event)

    def text(self, *fragments: str, number: int = 1) -> "Story":
        for fragment in fragments:
            event = RunEvent()
            event.text_delta.message_id, event.text_delta.text = f"msg_{number}", fragment
            self.tell(event)
        return self

    def end(self, text: str, number: int = 1) -> "Story":
        """Ends the message and its step."""
        event, step = RunEvent(), RunEvent()
        event.message_completed.message.CopyFrom(message(number, text, MessageState.MESSAGE_STATE_COMPLETED))
        step.step_completed.step.CopyFrom(message_step(number, RunStepState.RUN_STEP_STATE_COMPLETED))
        return self.tell(event).tell(step)

    def takeover(self, attempt: int, discards_after: int, base: int) -> "Story":
        event = RunEvent()
        event.attempt_started.attempt = attempt
        event.attempt_started.discards_after_sequence = discards_after
        return self.tell(event, sequence=base)

    def ask(self, *calls: ToolCall) -> "Story":
        """Asks for tool outputs."""
        event = RunEvent()
        event.tool_calls_requested.tool_calls.extend(calls)
        return self.tell(event).state(REQUIRES_ACTION, calls)


def message(number: int, text: str, state: "MessageState.ValueType") -> Message:
    content = [MessagePart(text=TextPart(text=text))] if text else []
    role = MessageRole.MESSAGE_ROLE_ASSISTANT
    return Message(id=f"msg_{number}", run_id=RUN_ID, role=role, content=content, state=state)


def message_step(number: int, state: "RunStepState.ValueType") -> RunStep:
    details = MessageCreation(message_id=f"msg_{number}")
    return RunStep(id=f"step_{number}", run_id=RUN_ID, position=number, state=state, message_creation=details)


def tool_step(number: int, *calls: ToolCall) -> RunStep:
    state = RunStepState.RUN_STEP_STATE_IN_PROGRESS
    return RunStep(id=f"step_{number}", position=number, state=state, tool_calls=ToolCallBatch(tool_calls=calls))


def call(call_id: str, name: str, arguments_json: str = "{}") -> ToolCall:
    return ToolCall(id=call_id, function=FunctionCall(name=name, arguments_json=arguments_json))


def snapshot(sequence: int, run: Run, *messages: Message) -> RunEvent:
    event = RunEvent(sequence=sequence)
    event.snapshot.run.CopyFrom(run)
    event.snapshot.messages.extend(messages)
    return event


def plain() -> list[RunEvent]:
    """A run that writes one message."""
    story = Story().state(QUEUED).state(IN_PROGRESS).begin().text("Good", " ", "morning", ", ", "world")
    return story.end("Good morning, world").state(COMPLETED).log


def taken_over() -> list[RunEvent]:
    """A run that was taken over in the middle of its second message, twice."""
    story = Story().state(IN_PROGRESS).begin().text("One").end("One")
    committed = story.last
    story.begin(2).text("Two, ", "they", number=2)
    story.takeover(2, committed, base=1_000).begin(3).text("Tw", number=3)
    story.takeover(3, committed, base=2_000).begin(4).text("Two, ", "we say", number=4)
    return story.end("Two, we say", 4).state(COMPLETED).log


def with_tools(*calls: ToolCall) -> list[RunEvent]:
    """A run that asks for outputs and then writes a message."""
    story = Story().state(IN_PROGRESS).ask(*calls).state(IN_PROGRESS).begin().text("Do", "ne")
    return story.end("Done").state(COMPLETED).log
