"""How a run comes to be: one transaction holds the request id, the thread, the frozen assistant, the run and its
messages - and the claim, where this process has a free slot (contract 4, 10)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunPriority
from famulus.v1.run_service_pb2 import BusyPolicy, CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus_server.engine import budgets, facts, fairness, lifecycle, line, tools
from famulus_server.engine.clock import timestamp
from famulus_server.engine.fields import copy_fields, copy_of, take
from famulus_server.engine.ledger import Settled
from famulus_server.engine.policy import Policy
from famulus_server.engine.settlement import end_waiting
from famulus_server.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Violation
from famulus_server.ports import Lease, Models, Remembered, RequestKey, Transaction

DEFAULT_TTL = timedelta(minutes=10)
DEFAULT_MAX_TURNS = 10
_LEAST_RETRY_SECONDS = 1.0

INTERRUPTING = frozenset({BusyPolicy.BUSY_POLICY_INTERRUPT, BusyPolicy.BUSY_POLICY_ROLLBACK})
_PATIENT = INTERRUPTING | {BusyPolicy.BUSY_POLICY_ENQUEUE}

# Fields that a request may override, under the same name, and that are otherwise the assistant's.
_OVERRIDES = ("instructions", "temperature", "top_p", "response_format")
# Fields that only a request has, under the same name.
_OWN = (
    "tool_choice",
    "parallel_tool_calls",
    "truncation_strategy",
    "max_prompt_tokens",
    "max_completion_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request for a run, with everything made beforehand that a unit of work may not make itself."""

    tenant: str
    request: CreateRunRequest
    key: RequestKey | None
    run_id: str
    new_thread: Thread | None
    messages: list[Message]
    lease: Lease | None
    policy: Policy
    now: datetime
    traceparent: str = ""


@dataclass(slots=True)
class Admitted:
    """What an admission did: the run as it is now, whether it was stored just now, runs that it ended on the way, the
    id of the run at work that it asked to stop, and what is in the thread that it made."""

    settled: Settled
    created: bool
    ended: list[Settled] = field(default_factory=list)
    stopping: str = ""
    thread: Remembered | None = None


async def admit(tx: Transaction, models: Models, admission: Admission) -> Admitted:
    """Stores the run, or finds the one that the same request made before: then nothing is stored. Raises
    ResourceExhausted where the run would have to wait, and enough do."""
    tenant, request = admission.tenant, admission.request
    if admission.key is not None:
        known = await tx.requests.find(tenant, admission.key)
        if known is not None:
            return Admitted(Settled(await tx.runs.get(tenant, known)), created=False)
    thread = admission.new_thread
    if thread is None:
        thread = await tx.threads.get(tenant, request.thread_id, lock=True)
    await budgets.check(tx, admission.policy, tenant, thread.user_id, now=admission.now)
    assistant_id = request.assistant_id or thread.default_assistant_id
    if not assistant_id:
        raise FailedPrecondition(reasons.ERROR_REASON_NO_ASSISTANT, "name an assistant: the thread has no default one")
    assistant = await tx.assistants.get(tenant, assistant_id, version=request.assistant_version)
    run = freeze(request, assistant, thread, run_id=admission.run_id, now=admission.now)
    check_model(run, models)
    run.last_sequence = 1
    run.traceparent = admission.traceparent
    messages = [copy_of(message) for message in admission.messages]
    busy = None
    if request.busy_policy in _PATIENT:
        busy = await tx.runs.active(tenant, thread.id)
    if busy is None:
        admitted = await _begin(tx, admission, run, messages)
    else:
        admitted = await _line_up(tx, admission, run, messages, busy)
    if admission.key is not None:
        await tx.requests.remember(tenant, admission.key, run.id)
    return admitted


async def _begin(tx: Transaction, admission: Admission, run: Run, messages: Sequence[Message]) -> Admitted:
    """Stores the run as the active one of its thread, and the claim with it where there is a free slot. Raises
    FailedPrecondition where there is an active one: the database itself says so."""
    if admission.lease is not None:
        run.state, run.attempt, run.turn_attempt = lifecycle.IN_PROGRESS, 1, 1
        run.start_time.CopyFrom(timestamp(admission.now))
    else:
        run.estimated_start_time.CopyFrom(timestamp(await _queue(tx, admission, run)))
    thread = None
    await tx.runs.insert(admission.tenant, run, lease=admission.lease)
    if admission.new_thread is not None:
        await tx.threads.insert(admission.tenant, admission.new_thread, messages)
        thread = Remembered(revision=0, floor=0, upto=len(messages), messages=messages)
    elif messages:
        await tx.messages.append(admission.tenant, run.thread_id, messages, now=admission.now)
    else:
        await tx.threads.touch(admission.tenant, run.thread_id, admission.now)
    return Admitted(_born(run, admission.now), created=True, thread=thread)


async def _line_up(tx: Transaction, admission: Admission, run: Run, messages: list[Message], busy: Run) -> Admitted:
    """Stores the run in line behind the active one, which is stopped where the policy says so."""
    tenant, policy, now = admission.tenant, admission.request.busy_policy, admission.now
    await tx.threads.touch(tenant, run.thread_id, now)
    # When the runs before it on its thread will have ended, nobody can tell.
    await _queue(tx, admission, run)
    if policy == BusyPolicy.BUSY_POLICY_ENQUEUE:
        await tx.runs.insert(tenant, run, lease=None, line=line.place(now))
        await tx.runs.keep_messages(tenant, run.id, messages)
        return Admitted(_born(run, now, in_line=True), created=True)
    ended = []
    # Who interrupted before, and has not begun, is interrupted in turn; what its user said goes with the new run.
    for waiting in await tx.runs.in_line(tenant, run.thread_id, upto=line.FIRST):
        messages = [*await tx.runs.take_messages(tenant, waiting.id), *messages]
        ended.append(await end_waiting(tx, tenant, waiting, lifecycle.CANCELLED, now=now))
    await tx.runs.insert(tenant, run, lease=None, line=line.FIRST)
    await tx.runs.keep_messages(tenant, run.id, messages)
    admitted = Admitted(_born(run, now, in_line=True), created=True, ended=ended)
    # A rollback that was granted before is not taken back by an interrupt.
    busy.rolled_back = busy.rolled_back or policy == BusyPolicy.BUSY_POLICY_ROLLBACK
    if busy.state in lifecycle.WAITING:
        # Its end lets the first in line begin: that is this run.
        ended.append(await end_waiting(tx, tenant, busy, lifecycle.CANCELLED, now=now))
    else:
        busy.state = lifecycle.CANCELLING
        await tx.runs.replace(tenant, busy, attempt=busy.attempt)
        admitted.stopping = busy.id
    return admitted


async def _queue(tx: Transaction, admission: Admission, run: Run) -> datetime:
    """When a worker will probably start on a run that must wait. Raises ResourceExhausted where the queue is full.

    Nobody is kept waiting for the count to be exact: of requests at once a few too many may be let in."""
    limit = admission.policy.tier(admission.tenant).max_queued_runs
    backlog = await tx.runs.backlog(admission.tenant, run, limit=limit)
    if backlog.queued >= limit:
        raise ResourceExhausted(
            reasons.ERROR_REASON_QUEUE_FULL,
            "too many runs wait for a worker",
            subject=f"tenant:{admission.tenant}",
            description=f"{limit} queued runs",
            metadata={"limit": str(limit)},
            retry_after=max(_LEAST_RETRY_SECONDS, fairness.pace(backlog)),
        )
    return fairness.estimated_start(backlog, admission.now)


def _born(run: Run, now: datetime, *, in_line: bool = False) -> Settled:
    events = [facts.state_changed(run)]
    facts.number(events, 0, now)
    return Settled(run, events, queued=run.state == lifecycle.QUEUED and not in_line)


def freeze(request: CreateRunRequest, assistant: Assistant, thread: Thread, *, run_id: str, now: datetime) -> Run:
    """The run with its own copy of the configuration, QUEUED."""
    run = Run(
        id=run_id,
        thread_id=thread.id,
        assistant_id=assistant.id,
        assistant_version=assistant.version,
        state=lifecycle.QUEUED,
        create_time=timestamp(now),
        metadata=request.metadata,
        user_id=thread.user_id,
        model=request.model or assistant.model,
        tools=request.tools.tools if request.HasField("tools") else assistant.tools,
        reasoning_effort=request.reasoning_effort or assistant.reasoning_effort,
        max_turns=request.max_turns or DEFAULT_MAX_TURNS,
        stream_reasoning=request.stream_reasoning,
        priority=request.priority or RunPriority.RUN_PRIORITY_DEFAULT,
    )
    ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else DEFAULT_TTL
    run.expire_time.CopyFrom(timestamp(now + ttl))
    take(run, _OVERRIDES, assistant)
    take(run, _OVERRIDES + _OWN, request)
    if request.additional_instructions:
        run.instructions = "\n\n".join(filter(None, (run.instructions, request.additional_instructions)))
    if assistant.HasField("tool_resources"):
        run.tool_resources.CopyFrom(assistant.tool_resources)
    for given, _ in thread.tool_resources.ListFields():
        copy_fields(thread.tool_resources, run.tool_resources, [given.name])
    return run


def check_model(run: Run, models: Models) -> None:
    """Raises FailedPrecondition where the configuration lacks the run's model, or its backend lacks a tool, and
    InvalidArgument where a function is chosen that the run lacks: now, and not in the middle of the run."""
    choice = run.tool_choice
    if choice.HasField("function_name") and choice.function_name not in tools.function_names(run.tools):
        raise InvalidArgument.fields([Violation("tool_choice.function_name", "is none of the run's functions")])
    card = models.card(run.model)
    if card is None:
        raise FailedPrecondition(
            reasons.ERROR_REASON_UNKNOWN_MODEL,
            f"no such model is configured: {run.model}",
            metadata={"model": run.model},
        )
    for tool in run.tools:
        kind = tool.WhichOneof("tool")
        if kind != "function" and not card.built_in_tools:
            raise FailedPrecondition(
                reasons.ERROR_REASON_TOOL_UNSUPPORTED,
                "the model's backend does not have this tool",
                metadata={"model": run.model, "tool": str(kind)},
            )
