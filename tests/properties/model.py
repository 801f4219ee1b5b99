"""The contract as a model: what is there, and how each call must be answered. Knows no socket and no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunRating, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.tool_pb2 import ToolOutput
from famulus_server.engine.lifecycle import CANCELLED, CANCELLING, FINAL, IN_PROGRESS, QUEUED, REQUIRES_ACTION
from properties.stage import SCENARIOS, Scenario


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: its code, its reason, and what of its metadata is known."""

    code: grpc.StatusCode
    reason: str
    metadata: tuple[tuple[str, str], ...] = ()


NOT_FOUND = Refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
STALE = Refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
REUSED = Refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
NO_ASSISTANT = Refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ASSISTANT")
NOT_FINISHED = Refused(grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_FINISHED")
MISSING_OUTPUTS = Refused(grpc.StatusCode.INVALID_ARGUMENT, "TOOL_OUTPUTS_INCOMPLETE")
UNKNOWN_CALL = Refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOOL_CALL")

ENQUEUE, ROLLBACK = BusyPolicy.BUSY_POLICY_ENQUEUE, BusyPolicy.BUSY_POLICY_ROLLBACK
PATIENT = frozenset({ENQUEUE, ROLLBACK, BusyPolicy.BUSY_POLICY_INTERRUPT})


def busy(run_id: str) -> Refused:
    """The thread has this active run."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "THREAD_HAS_ACTIVE_RUN", (("run_id", run_id),))


def not_waiting(state: "RunState.ValueType") -> Refused:
    """The run does not wait for outputs."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_WAITING", (("state", RunState.Name(state)),))


def conflict(call_id: str) -> Refused:
    """The call was answered otherwise."""
    metadata = (("call_id", call_id),)
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "TOOL_OUTPUT_CONFLICT", metadata)


# How a call may be answered; None stands for OK. More than one only where a run goes on by itself meanwhile.
Answers = Sequence[Refused | None]
OK: Answers = (None,)


@dataclass(slots=True)
class AssistantRecord:
    """An assistant: its versions, oldest first, and the configuration that EnsureAssistant knows it by."""

    versions: list[Assistant]
    ensured: str = ""
    gone: bool = False

    @property
    def newest(self) -> Assistant:
        return self.versions[-1]


@dataclass(slots=True)
class ThreadRecord:
    """A thread as stored, its messages in order, and the runs that wait behind the active one. `last_sequence` is the
    highest that was ever given."""

    thread: Thread
    messages: list[Message] = field(default_factory=list)
    forgotten: list[Message] = field(default_factory=list)
    line: "list[RunRecord]" = field(default_factory=list)
    last_sequence: int = 0
    old_etag: str = ""
    gone: bool = False

    def add(self, messages: Sequence[Message]) -> None:
        self.messages = sorted([*self.messages, *messages], key=lambda message: message.sequence)
        self.last_sequence = max([self.last_sequence, *(message.sequence for message in messages)])

    def remove(self, message: Message) -> None:
        self.messages.remove(message)
        self.forgotten.append(message)

    def remove_written(self, run_id: str) -> None:
        """Removes the messages that a run wrote."""
        for message in [message for message in self.messages if message.run_id == run_id]:
            self.remove(message)


@dataclass(slots=True)
class RunRecord:
    """A run. While `state` is None it goes on by itself, to one of the states in `next_stops`.

    In line it is QUEUED, and `kept` are the messages that wait with it; `first` says that it interrupted another run.
    One that was there (`lined_up`) may be QUEUED for a moment although it is its turn. `rollbacks` is what
    Run.rolled_back may say in the end.
    """

    id: str
    number: int
    thread: ThreadRecord
    scenario_name: str
    next_stops: set["RunState.ValueType"]
    state: "RunState.ValueType | None" = None
    stops: int = 0  # how many of the scenario's stops it has come to
    run: Run = field(default_factory=Run)
    messages: list[Message] = field(default_factory=list)
    answered: dict[str, ToolOutput] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    rated: RunRating = field(default_factory=RunRating)
    cancelled: bool = False
    kept: list[Message] = field(default_factory=list)
    first: bool = False
    lined_up: bool = False
    rollbacks: set[bool] = field(default_factory=lambda: {False})
    watchers: list[Any] = field(default_factory=list)

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.scenario_name]

    @property
    def gone(self) -> bool:
        return self.thread.gone

    @property
    def in_line(self) -> bool:
        return any(run is self for run in self.thread.line)

    @property
    def active(self) -> bool | None:
        """None: who knows."""
        if self.in_line:
            return False
        if self.state is not None:
            return self.state not in FINAL
        return None if self.next_stops & FINAL else True

    @property
    def visible(self) -> set["RunState.ValueType"]:
        """The states that a reader may see."""
        if self.state is not None:
            return {self.state}
        going_on = {QUEUED, IN_PROGRESS}
        if not self.cancelled:
            return self.next_stops | going_on
        return self.next_stops | {CANCELLING} | (going_on if self.lined_up else set())

    @property
    def open_calls(self) -> list[str]:
        return [call.id for call in self.run.required_action.tool_calls] if self.state == REQUIRES_ACTION else []

    def begin(self) -> None:
        """The run starts: it is at work until somebody releases it, or goes on to its first stop."""
        if self.scenario.holds:
            self.state = IN_PROGRESS
        else:
            self.go_on()

    def go_on(self) -> None:
        """The run goes on to its scenario's next stop."""
        self.state, self.next_stops = None, {self.scenario.stops[self.stops]}
        self.stops += 1

    def note_cancel(self, answer: Run) -> None:
        """Notes what CancelRun answered, which must be possible (contract 22)."""
        allowed = {CANCELLED if state == REQUIRES_ACTION else state for state in self.visible}
        if self.in_line:
            self.thread.line.remove(self)
            self.kept, allowed = [], {CANCELLED}
        elif self.state is None or self.state == IN_PROGRESS:
            allowed = (allowed - {QUEUED, IN_PROGRESS}) | {CANCELLING} | ({CANCELLED} if self.lined_up else set())
        assert answer.state in allowed, f"cancelled to {answer.state}, possible were {allowed}"
        self.cancelled = True
        if self.state is None or self.state not in FINAL:
            self.state, self.next_stops = None, {CANCELLED if answer.state == CANCELLING else answer.state}

    def interrupt(self, *, rolls_back: bool) -> None:
        """The active run is cancelled by one that takes its place; what is rolled back goes."""
        self.state, self.next_stops, self.cancelled = None, {CANCELLED}, True
        if rolls_back:
            self.rollbacks = {True}
            self.thread.remove_written(self.id)

    def interrupt_perhaps(self, *, rolls_back: bool) -> list[Message]:
        """So is the first in line, unless its turn came, and it ended, before; returns the messages it may not have
        said."""
        self.thread.line.remove(self)
        ends = {stop for stop in self.scenario.stops[:1] if stop in FINAL and not self.scenario.holds}
        self.state, self.next_stops, self.cancelled, self.first = None, {CANCELLED} | ends, True, False
        if rolls_back:
            self.rollbacks.add(True)
        kept, self.kept = self.kept, []
        return kept


class ContractModel:
    """All that was created, the tombstones included."""

    def __init__(self) -> None:
        self.assistants: list[AssistantRecord] = []
        self.threads: list[ThreadRecord] = []
        self.runs: list[RunRecord] = []
        self.requests: dict[tuple[str, str], tuple[Any, str]] = {}

    def remember(self, method: str, request: Any, resource_id: str) -> None:
        """A request was granted."""
        if request.request_id:
            self.requests.setdefault((method, request.request_id), (request, resource_id))

    def assistant(self, assistant_id: str) -> AssistantRecord | None:
        """The assistant, if it is there."""
        found = (record for record in self.assistants if record.newest.id == assistant_id and not record.gone)
        return next(found, None)

    def thread(self, thread_id: str) -> ThreadRecord | None:
        """The thread, if it is there."""
        return next((record for record in self.threads if record.thread.id == thread_id and not record.gone), None)

    def run(self, run_id: str) -> RunRecord | None:
        """The run, if it is there."""
        return next((record for record in self.runs if record.id == run_id and not record.gone), None)

    def ensured(self, configuration: str) -> AssistantRecord | None:
        """The assistant that EnsureAssistant must find."""
        return next((a for a in self.assistants if a.ensured == configuration and not a.gone), None)

    def active_run(self, thread: ThreadRecord) -> RunRecord | None:
        """The run that is active on a thread, or may be."""
        return next((run for run in self.runs if run.thread is thread and run.active is not False), None)

    def going_on(self, thread: ThreadRecord) -> list[RunRecord]:
        """The runs on a thread that go on by themselves, or have just ended."""
        return [run for run in self.runs if run.thread is thread and run.state is None]

    def unsettled(self, run_id: str) -> bool:
        """Whether a run may be writing messages that the model does not know yet."""
        return any(run.id == run_id and run.state is None for run in self.runs)

    def uncertain(self, thread: ThreadRecord, message: Message) -> bool:
        """Whether a message of a thread may be there already, by whatever goes on by itself."""
        if self.unsettled(message.run_id):
            return True
        active = self.active_run(thread)
        kept = (waiting for run in thread.line for waiting in run.kept)
        return active is not None and active.state is None and any(message.content == one.content for one in kept)

    def line_up(self, run: RunRecord, policy: "BusyPolicy.ValueType", messages: Sequence[Message]) -> None:
        """A run comes in line behind the active one, or in the place of it (contract 6)."""
        thread, active = run.thread, self.active_run(run.thread)
        assert active is not None, "a run in line on an idle thread"
        run.state, run.lined_up, run.kept = QUEUED, True, list(messages)
        if policy == ENQUEUE:
            thread.line.append(run)
            return
        if thread.line and thread.line[0].first:
            if policy == ROLLBACK:
                for other in self.going_on(thread):
                    other.rollbacks.add(True)
            run.kept = thread.line[0].interrupt_perhaps(rolls_back=policy == ROLLBACK) + run.kept
        else:
            active.interrupt(rolls_back=policy == ROLLBACK)
        run.first = True
        thread.line.insert(0, run)

    def advance(self, thread: ThreadRecord) -> RunRecord | None:
        """The run whose turn it is now, if the thread is idle and one waits."""
        if not thread.line or self.active_run(thread) is not None:
            return None
        run = thread.line.pop(0)
        run.first = False
        run.begin()
        return run

    def answers_to_create_run(self, request: CreateRunRequest) -> Answers:
        """How a CreateRun without a known request id must be answered (contract 6)."""
        record = None
        default = request.new_thread.default_assistant_id
        if request.WhichOneof("target") == "thread_id":
            record = self.thread(request.thread_id)
            if record is None:
                return (NOT_FOUND,)
            default = record.thread.default_assistant_id
        assistant = self.assistant(request.assistant_id or default)
        if not (request.assistant_id or default):
            return (NO_ASSISTANT,)
        if assistant is None or request.assistant_version > len(assistant.versions):
            return (NOT_FOUND,)
        active = self.active_run(record) if record is not None else None
        if active is None or request.busy_policy in PATIENT:
            return OK
        return (busy(active.id),) if active.active else (None, busy(active.id))

    def answers_to_outputs(self, run: RunRecord, outputs: Sequence[ToolOutput]) -> Answers:
        """How SubmitToolOutputs must be answered, by a run that does not go on by itself (contract 20)."""
        if run.gone:
            return (NOT_FOUND,)
        given = {output.call_id: output for output in outputs}
        # Idempotent per call, however far the run has come.
        if all(run.answered.get(call_id) == output for call_id, output in given.items()):
            return OK
        conflicts = [conflict(call) for call in given if run.answered.get(call, given[call]) != given[call]]
        if run.state != REQUIRES_ACTION:
            return (not_waiting(run.state or IN_PROGRESS), *conflicts)
        if not given.keys() <= {*run.open_calls, *run.answered}:
            return (UNKNOWN_CALL,)
        if not given.keys() >= set(run.open_calls):
            return (MISSING_OUTPUTS, *conflicts)
        return tuple(conflicts) or OK
