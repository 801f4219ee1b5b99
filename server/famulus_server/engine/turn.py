"""One model turn as it comes in: model events become run events, and gather to messages and steps.

Nothing here is stored, and nothing here waits: the executor commits the result, or throws it away.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import msgspec

from famulus.v1.message_pb2 import (
    Annotation,
    Message,
    MessageIncompleteReason,
    MessageRole,
    MessageState,
)
from famulus.v1.run_event_pb2 import (
    AnnotationAdded,
    MessageStarted,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    StepStarted,
    ToolCallDelta,
)
from famulus.v1.run_pb2 import Run, Usage
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import ToolCall
from famulus_server.engine import facts, tools
from famulus_server.engine.clock import timestamp
from famulus_server.engine.feed import Draft
from famulus_server.engine.fields import copy_of
from famulus_server.engine.packing import Packer
from famulus_server.errors import ModelProtocolError
from famulus_server.ports import (
    Allowance,
    AnnotationChunk,
    CallChunk,
    Clock,
    Ids,
    ModelEvent,
    ReasoningChunk,
    RefusalChunk,
    Retrying,
    TextChunk,
    TurnEnded,
)

# What one turn may write, in characters: a message must fit a gRPC response, and memory must be bounded.
_MAX_CHARACTERS = 1_000_000
_MAX_CALLS_STORED = 1_024
_CALL_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")


@dataclass(slots=True)
class _Part:
    refusal: bool
    position: int
    chunks: list[str] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(slots=True)
class _Writing:
    """A message being written. `parts` maps the model's part index to ours, in order of appearance."""

    message: Message
    step: RunStep
    parts: dict[int, _Part] = field(default_factory=dict)

    def part(self, index: int, *, refusal: bool) -> tuple[int, _Part]:
        part = self.parts.get(index)
        if part is None:
            part = self.parts[index] = _Part(refusal, len(self.parts))
        return part.position, part

    def content(self) -> Message:
        message = Message()
        message.CopyFrom(self.message)
        for part in self.parts.values():
            text = "".join(part.chunks)
            if part.refusal:
                message.content.add().refusal.refusal = text
            else:
                message.content.add().text.text = text
                message.content[-1].text.annotations.extend(part.annotations)
        return message


@dataclass(slots=True)
class _Calling:
    """A function call being made."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class TurnResult:
    """What a turn made: messages and steps in order, the items to send back, and whether calls wait for outputs."""

    messages: list[Message]
    steps: list[RunStep]
    items: list[Mapping[str, Any]]
    open_calls: list[ToolCall]
    has_calls: bool


class TurnRecorder:
    """Gathers the events of one model turn."""

    def __init__(self, *, run: Run, next_position: int, taken_call_ids: set[str], clock: Clock, ids: Ids) -> None:
        self._run = run
        self._next_position = next_position
        # A copy: what a turn that is thrown away has taken is free again.
        self._taken_call_ids = set(taken_call_ids)
        self._clock = clock
        self._ids = ids
        self._writing: dict[int, _Writing] = {}
        self._calling: dict[int, _Calling] = {}
        self._call_step: RunStep | None = None
        self._functions = tools.function_names(run.tools)
        self.characters = 0
        self.ended: TurnEnded | None = None
        # Whether the model has said anything, shown or not: from then on a retry is a new attempt (contract 18).
        self.heard = False

    def take(self, events: Sequence[ModelEvent], packer: Packer) -> None:
        """Packs the run events that these model events mean. Raises ModelProtocolError where a bound is passed."""
        for place, group in groupby(events, _place):
            if place is None:
                self._take_others(group, packer)
            else:
                # Of one read there may be hundreds.
                self.heard = True
                self._take_texts(*place, [event.text for event in group if isinstance(event, TextChunk)], packer)

    def _take_texts(self, item: int, number: int, texts: list[str], packer: Packer) -> None:
        writing = self._message(item, packer)
        index, part = writing.part(number, refusal=False)
        part.chunks += texts
        packer.add_texts(writing.message.id, index, texts)
        self._count(*texts)

    def _take_others(self, events: Iterable[ModelEvent], packer: Packer) -> None:
        for event in events:
            self.heard = self.heard or not isinstance(event, Retrying | Allowance)
            match event:
                case CallChunk():
                    self._call(event, packer)
                case ReasoningChunk():
                    if self._run.stream_reasoning:
                        packer.add(RunEvent(reasoning_delta=ReasoningDelta(text=event.text)))
                        self._count(event.text)
                case RefusalChunk():
                    writing = self._message(event.item, packer)
                    index, part = writing.part(event.part, refusal=True)
                    part.chunks.append(event.text)
                    refusal = RefusalDelta(message_id=writing.message.id, part_index=index, refusal=event.text)
                    packer.add(RunEvent(refusal_delta=refusal))
                    self._count(event.text)
                case AnnotationChunk():
                    writing = self._message(event.item, packer)
                    index, part = writing.part(event.part, refusal=False)
                    part.annotations.append(event.annotation)
                    added = AnnotationAdded(
                        message_id=writing.message.id, part_index=index, annotation=event.annotation
                    )
                    packer.add(RunEvent(annotation_added=added))
                case Retrying():
                    packer.add(facts.retry_scheduled(event.code, event.delay))
                case TurnEnded():
                    self.ended = event
                    if any(map(_is_built_in_call, event.items)):
                        self._tool_step(packer)

    def draft(self) -> Draft:
        """What there is so far, as a Snapshot shows it: unfinished until its end is stored and told."""
        steps = [writing.step for writing in self._writing.values()]
        if self._call_step is not None:
            steps.append(self._call_step)
        messages = [writing.content() for writing in self._writing.values()]
        return Draft(messages=messages, steps=list(map(_unfinished, steps)))

    def finish(self) -> TurnResult:
        """The turn after its terminal event, as it is to be stored."""
        now = self._clock.now()
        messages, steps = self._close_messages(now, None)
        items: list[Mapping[str, Any]] = []
        made: list[ToolCall] = []
        for index, item in enumerate(self.ended.items if self.ended else ()):
            calling = self._calling.get(index)
            if calling is not None:
                # Ours may differ from the model's, and the next turn must say the same in calls and outputs.
                item["call_id"] = calling.id
                made.append(self._made(calling, len(made)))
            elif _is_built_in_call(item):
                details = msgspec.json.encode(item).decode()
                made.append(ToolCall(id=str(item.get("id") or self._ids.new("call"))))
                made[-1].built_in.type = item["type"]
                made[-1].built_in.details_json = details
            items.append(item)
        open_calls = [call for call in made if tools.is_open(call)]
        items.extend(tools.output_item(call) for call in made if call.function.problem)
        step = self._call_step
        if step is not None:
            step.tool_calls.tool_calls.extend(made)
            if not open_calls:
                step.state = RunStepState.RUN_STEP_STATE_COMPLETED
                step.end_time.CopyFrom(timestamp(now))
            steps.append(step)
        self._add_usage(steps)
        has_calls = any(call.HasField("function") for call in made)
        return TurnResult(messages, steps, items, open_calls, has_calls)

    def abandon(self, reason: "MessageIncompleteReason.ValueType", state: "RunStepState.ValueType") -> TurnResult:
        """The turn where it was broken off: partial messages stay, marked (contract 19); calls do not."""
        now = self._clock.now()
        messages, steps = self._close_messages(now, (reason, state))
        if self._call_step is not None:
            self._call_step.state = state
            self._call_step.end_time.CopyFrom(timestamp(now))
            steps.append(self._call_step)
        self._add_usage(steps)
        return TurnResult(messages, steps, [], [], False)

    def _message(self, item: int, packer: Packer) -> _Writing:
        writing = self._writing.get(item)
        if writing is None:
            now = timestamp(self._clock.now())
            message = Message(
                id=self._ids.new("msg"),
                thread_id=self._run.thread_id,
                create_time=now,
                role=MessageRole.MESSAGE_ROLE_ASSISTANT,
                state=MessageState.MESSAGE_STATE_IN_PROGRESS,
                assistant_id=self._run.assistant_id,
                run_id=self._run.id,
            )
            step = self._step()
            step.message_creation.message_id = message.id
            packer.add(RunEvent(step_started=StepStarted(step=step)))
            packer.add(RunEvent(message_started=MessageStarted(message=message)))
            writing = self._writing[item] = _Writing(message, step)
        return writing

    def _call(self, event: CallChunk, packer: Packer) -> None:
        step = self._tool_step(packer)
        calling = self._calling.get(event.item)
        first = calling is None
        if calling is None:
            if len(self._calling) >= _MAX_CALLS_STORED:
                raise ModelProtocolError(f"more than {_MAX_CALLS_STORED} tool calls in a turn")
            call_id = event.call_id
            # Some servers repeat ids, or give none: ours must be unique within the run, and such that callers can name
            # them with the output.
            if not _CALL_ID.fullmatch(call_id) or call_id in self._taken_call_ids:
                call_id = self._ids.new("call")
            self._taken_call_ids.add(call_id)
            calling = self._calling[event.item] = _Calling(call_id, event.name)
        calling.arguments.append(event.arguments)
        self._count(event.arguments)
        delta = ToolCallDelta(
            step_id=step.id,
            call_id=calling.id,
            name=calling.name if first else "",
            arguments_json_delta=event.arguments,
        )
        packer.add(RunEvent(tool_call_delta=delta))

    def _tool_step(self, packer: Packer) -> RunStep:
        if self._call_step is None:
            self._call_step = self._step()
            self._call_step.tool_calls.SetInParent()
            packer.add(RunEvent(step_started=StepStarted(step=self._call_step)))
        return self._call_step

    def _step(self) -> RunStep:
        step = RunStep(
            id=self._ids.new("step"),
            run_id=self._run.id,
            thread_id=self._run.thread_id,
            assistant_id=self._run.assistant_id,
            position=self._next_position,
            turn=self._run.turns + 1,
            state=RunStepState.RUN_STEP_STATE_IN_PROGRESS,
            create_time=timestamp(self._clock.now()),
        )
        self._next_position += 1
        return step

    def _made(self, calling: _Calling, position: int) -> ToolCall:
        # A function without parameters is called with nothing at all by some servers.
        arguments = "".join(calling.arguments) or "{}"
        call = ToolCall(id=calling.id)
        call.function.name = calling.name
        call.function.arguments_json = arguments
        call.function.problem = tools.find_problem(
            calling.name, arguments, position=position, functions=self._functions
        )
        if call.function.problem:
            tools.answer_problem(call)
        return call

    def _close_messages(
        self,
        now: datetime,
        broken: "tuple[MessageIncompleteReason.ValueType, RunStepState.ValueType] | None",
    ) -> tuple[list[Message], list[RunStep]]:
        messages, steps = [], []
        for writing in self._writing.values():
            message, step = writing.content(), writing.step
            message.state = MessageState.MESSAGE_STATE_COMPLETED
            step.state = RunStepState.RUN_STEP_STATE_COMPLETED
            if broken is not None:
                message.state = MessageState.MESSAGE_STATE_INCOMPLETE
                message.incomplete_reason, step.state = broken
            step.end_time.CopyFrom(timestamp(now))
            messages.append(message)
            steps.append(step)
        return messages, steps

    def _add_usage(self, steps: list[RunStep]) -> None:
        if steps and self.ended is not None and self.ended.usage is not None:
            steps[0].usage.CopyFrom(self.ended.usage)

    def _count(self, *texts: str) -> None:
        self.characters += sum(map(len, texts))
        if self.characters > _MAX_CHARACTERS:
            raise ModelProtocolError(f"more than {_MAX_CHARACTERS} characters in a turn")


def _place(event: ModelEvent) -> tuple[int, int] | None:
    """Where a text belongs; nothing for what is none."""
    return (event.item, event.part) if type(event) is TextChunk else None


def _is_built_in_call(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and kind.endswith("_call") and kind != "function_call"


def estimated_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Usage where the provider tells none."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        estimated=True,
    )


def add_usage(total: Usage, more: Usage) -> None:
    """Adds, in place."""
    total.prompt_tokens += more.prompt_tokens
    total.completion_tokens += more.completion_tokens
    total.total_tokens += more.total_tokens
    total.cached_prompt_tokens += more.cached_prompt_tokens
    total.reasoning_tokens += more.reasoning_tokens
    total.estimated = total.estimated or more.estimated
    total.cost_nanos += more.cost_nanos


def _unfinished(step: RunStep) -> RunStep:
    result = copy_of(step)
    result.state = RunStepState.RUN_STEP_STATE_IN_PROGRESS
    result.ClearField("end_time")
    result.ClearField("usage")
    if result.HasField("tool_calls"):
        result.tool_calls.ClearField("tool_calls")
    return result
