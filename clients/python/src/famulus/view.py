"""What a run looks like after the events seen so far."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, MessageState
from famulus.v1.run_event_pb2 import RunEvent, Snapshot
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import ToolCall

FINAL_STATES = frozenset(
    {
        RunState.RUN_STATE_CANCELLED,
        RunState.RUN_STATE_FAILED,
        RunState.RUN_STATE_COMPLETED,
        RunState.RUN_STATE_INCOMPLETE,
        RunState.RUN_STATE_EXPIRED,
    }
)
# More than any message has. A damaged index must not cost memory.
MOST_PARTS = 1_000

Item = TypeVar("Item", Message, RunStep)


def text_of(message: Message) -> str:
    """The text parts of a message, joined."""
    return "".join(part.text.text for part in message.content if part.WhichOneof("part") == "text")


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that ended or needs action, and the messages it wrote."""

    run: Run
    messages: list[Message]

    @property
    def text(self) -> str:
        """The text of all messages, a blank line between two."""
        return "\n\n".join(filter(None, map(text_of, self.messages)))


@dataclass(slots=True)
class _Draft(Generic[Item]):
    """Something unfinished: how it began, at which sequence, and the deltas that came since."""

    began: int
    base: Item
    deltas: list[RunEvent] = field(default_factory=list)
    _built: Item | None = None
    _applied: int = 0

    def build(self) -> Item:
        """The item as it is now. Each delta is applied once, however often this is called."""
        if self._built is None:
            self._built = type(self.base)()
            self._built.CopyFrom(self.base)
            self._applied = 0
        for event in self.deltas[self._applied :]:
            _grow(self._built, event)
        self._applied = len(self.deltas)
        return self._built

    def cut(self, after: int) -> None:
        """Drops the deltas behind a sequence."""
        self.deltas = [event for event in self.deltas if event.sequence <= after]
        self._built = None


class _Items(Generic[Item]):
    """Messages or steps of a run in order of appearance, finished ones and drafts."""

    def __init__(self, kind: type[Item], unfinished: Callable[[Item], bool]) -> None:
        self._kind: type[Item] = kind
        self._unfinished: Callable[[Item], bool] = unfinished
        self._items: dict[str, Item | _Draft[Item]] = {}

    def all(self) -> list[Item]:
        return [item.build() if isinstance(item, _Draft) else item for item in self._items.values()]

    def start(self, sequence: int, item: Item) -> None:
        self._items[item.id] = _Draft(sequence, item)

    def finish(self, item: Item) -> None:
        self._items[item.id] = item

    def extend(self, item_id: str, event: RunEvent) -> None:
        # Who joined in the middle has not seen the start.
        item = self._items.setdefault(item_id, _Draft(event.sequence, self._kind(id=item_id)))
        if isinstance(item, _Draft):
            item.deltas.append(event)

    def discard(self, after: int) -> None:
        """Drops what was shown behind a sequence and is not stored."""
        for item_id, item in list(self._items.items()):
            if not isinstance(item, _Draft):
                continue
            if item.began > after:
                del self._items[item_id]
            else:
                item.cut(after)

    def replace(self, sequence: int, items: Iterable[Item]) -> None:
        """Replaces everything by what is there as of a sequence."""
        self._items = {item.id: _Draft(sequence, item) if self._unfinished(item) else item for item in items}


class RunView:
    """A run with its messages, steps and reasoning, kept up to date by the events of the run.

    After an AttemptStarted, text that was shown but never stored is gone again; a Snapshot replaces everything.
    A view of a stream that was joined in the middle lacks what came before, until facts or a Snapshot bring it.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        """The run as of its latest change of state; None until an event brought it."""
        self.attempt = 0
        """Number of the latest attempt that was announced; 0 before a first takeover."""
        self.run_id = ""
        """Id of the run; empty until an event brought it."""
        self._messages = _Items(Message, lambda message: message.state == MessageState.MESSAGE_STATE_IN_PROGRESS)
        self._steps = _Items(RunStep, lambda step: step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS)
        self._reasoning: list[tuple[int, str]] = []

    @property
    def messages(self) -> list[Message]:
        """The messages that the run wrote, the growing one included. Copy what you want to keep or change."""
        return self._messages.all()

    @property
    def steps(self) -> list[RunStep]:
        """The steps of the run, the current one included. Copy what you want to keep or change."""
        return sorted(self._steps.all(), key=lambda step: step.position)

    @property
    def text(self) -> str:
        """The text of all messages, a blank line between two."""
        return "\n\n".join(filter(None, map(text_of, self.messages)))

    @property
    def reasoning(self) -> str:
        """The model's reasoning; only of runs created with `stream_reasoning`."""
        return "".join(text for _, text in self._reasoning)

    @property
    def finished(self) -> bool:
        """Whether the run reached a final state."""
        return self.run is not None and self.run.state in FINAL_STATES

    def result(self) -> RunResult:
        """The run and its messages. Raises ValueError where no event brought the run yet."""
        if self.run is None:
            raise ValueError("no event brought the run yet")
        return RunResult(self.run, self.messages)

    def apply(self, event: RunEvent) -> None:
        """Takes in one event. Events must come in order, each once; unknown kinds change nothing."""
        match event.WhichOneof("event"):
            case "run_state_changed":
                self.adopt(event.run_state_changed.run)
            case "message_started":
                self.name(event.message_started.message.run_id)
                self._messages.start(event.sequence, event.message_started.message)
            case "message_completed":
                self.name(event.message_completed.message.run_id)
                self._messages.finish(event.message_completed.message)
            case "text_delta":
                self._messages.extend(event.text_delta.message_id, event)
            case "refusal_delta":
                self._messages.extend(event.refusal_delta.message_id, event)
            case "annotation_added":
                self._messages.extend(event.annotation_added.message_id, event)
            case "step_started":
                self.name(event.step_started.step.run_id)
                self._steps.start(event.sequence, event.step_started.step)
            case "step_completed":
                self.name(event.step_completed.step.run_id)
                self._steps.finish(event.step_completed.step)
            case "tool_call_delta":
                self._steps.extend(event.tool_call_delta.step_id, event)
            case "reasoning_delta":
                self._reasoning.append((event.sequence, event.reasoning_delta.text))
            case "attempt_started":
                self.attempt = event.attempt_started.attempt
                self._discard(event.attempt_started.discards_after_sequence)
            case "snapshot":
                self._replace(event.sequence, event.snapshot)

    def adopt(self, run: Run) -> None:
        """Takes over a newer state of the run."""
        self.run = run
        self.name(run.id)
        if self.finished:
            self._discard(0)  # what is not stored when the run ends never will be

    def name(self, run_id: str) -> None:
        """Notes the id of the run."""
        self.run_id = self.run_id or run_id

    def _discard(self, after: int) -> None:
        self._messages.discard(after)
        self._steps.discard(after)
        self._reasoning = [(sequence, text) for sequence, text in self._reasoning if sequence <= after]

    def _replace(self, sequence: int, snapshot: Snapshot) -> None:
        self._messages.replace(sequence, snapshot.messages)
        self._steps.replace(sequence, snapshot.steps)
        self._reasoning.clear()
        self.adopt(snapshot.run)


def _grow(item: Message | RunStep, event: RunEvent) -> None:
    """Applies a delta to what it is about."""
    if isinstance(item, RunStep):
        delta = event.tool_call_delta
        call = _call(item, delta.call_id)
        call.function.name = call.function.name or delta.name
        call.function.arguments_json += delta.arguments_json_delta
        return
    match event.WhichOneof("event"):
        case "text_delta":
            if part := _part(item, event.text_delta.part_index):
                part.text.text += event.text_delta.text
        case "refusal_delta":
            if part := _part(item, event.refusal_delta.part_index):
                part.refusal.refusal += event.refusal_delta.refusal
        case "annotation_added":
            if part := _part(item, event.annotation_added.part_index):
                part.text.annotations.append(event.annotation_added.annotation)


def _part(message: Message, index: int) -> MessagePart | None:
    """The part at an index, made if need be; None where the index makes no sense."""
    if not 0 <= index < MOST_PARTS:
        return None
    if not message.role:
        message.role, message.state = MessageRole.MESSAGE_ROLE_ASSISTANT, MessageState.MESSAGE_STATE_IN_PROGRESS
    while len(message.content) <= index:
        message.content.add()
    return message.content[index]


def _call(step: RunStep, call_id: str) -> ToolCall:
    """The call of a step, added if need be."""
    for call in step.tool_calls.tool_calls:
        if call.id == call_id:
            return call
    return step.tool_calls.tool_calls.add(id=call_id)
