"""How a turn, or a run, ends in the store: one transaction, then the facts (contract 3, 8, 13, 16)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from famulus.v1.message_pb2 import Message, MessageIncompleteReason, MessageState
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunError, RunIncompleteReason, RunState, Usage
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import ToolCall
from famulus_server.engine import facts, lifecycle, line, prices, turn, usage
from famulus_server.engine.clock import timestamp
from famulus_server.engine.fields import copy_of
from famulus_server.engine.ledger import Settled
from famulus_server.engine.policy import Policy
from famulus_server.errors import LeaseLost, NotFound
from famulus_server.ports import Lease, Transaction, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a worker wants to be true at the end of a turn. IN_PROGRESS means that another turn follows; QUEUED, that
    the turn is to be tried again at `wake_time`."""

    state: "RunState.ValueType"
    messages: Sequence[Message] = ()
    steps: Sequence[RunStep] = ()
    turn: Turn | None = None
    usage: Usage | None = None
    open_calls: Sequence[ToolCall] = ()
    error: RunError | None = None
    incomplete_reason: "RunIncompleteReason.ValueType" = RunIncompleteReason.RUN_INCOMPLETE_REASON_UNSPECIFIED
    variant: str = ""
    """The model that answered; none where none was asked."""
    degraded: bool = False
    wake_time: datetime | None = None


async def lock(tx: Transaction, tenant: str, run_id: str) -> Run:
    """The run, locked, behind its thread: in this order no two units wait for each other. Raises NotFound."""
    run = await tx.runs.get(tenant, run_id)
    await tx.threads.hold(tenant, run.thread_id)
    return await tx.runs.get(tenant, run_id, lock=True)


async def hold(tx: Transaction, tenant: str, run: Run, *, now: datetime, messages: int = 0) -> tuple[Run, int]:
    """The run, locked behind its thread, if it is still this attempt's and as this worker left it, and the first of so
    many sequences for messages. Otherwise it raises LeaseLost, also where an earlier write of this worker was stored
    although its commit seemed to fail."""
    try:
        stored, first = await tx.runs.hold(tenant, run, now, messages=messages)
    except NotFound as error:
        raise LeaseLost(run.id) from error
    as_left = stored.last_sequence == run.last_sequence
    if stored.attempt != run.attempt or stored.state not in lifecycle.OWNED or not as_left:
        raise LeaseLost(run.id)
    return stored, first


async def settle(
    tx: Transaction, tenant: str, known: Run, *, sequence: int, wanted: Settlement, policy: Policy, now: datetime
) -> Settled:
    """Stores a settlement of a run that is `known` as this worker left it; `sequence` is that of the last event
    published, and `policy` has the prices. A run that was asked to stop meanwhile is cancelled, whatever was wanted
    (contract 22). Raises LeaseLost if the run is no longer this worker's."""
    # Where the run is rolled back, sequences are left out: as if its messages had been there, and gone.
    run, first = await hold(tx, tenant, known, now=now, messages=len(wanted.messages))
    attempt = run.attempt
    events: list[RunEvent] = []
    if run.state == lifecycle.CANCELLING:
        # Told here, and not by whoever asked for it: so it is told once, and nothing of the turn comes after it.
        events.append(facts.state_changed(run))
        wanted = cancelled(wanted)
    if run.rolled_back:
        wanted = replace(wanted, messages=())
    run.variant = wanted.variant or run.variant
    run.degraded = run.degraded or wanted.degraded
    messages = [copy_of(message) for message in wanted.messages]
    await tx.messages.put(tenant, run.thread_id, messages, first=first)
    events += map(facts.message_completed, messages)
    for step in wanted.steps:
        if step.state != RunStepState.RUN_STEP_STATE_IN_PROGRESS and not step.HasField("end_time"):
            step.end_time.CopyFrom(timestamp(now))
        if step.HasField("usage"):
            prices.set_cost(policy, run, step.usage)
        await tx.steps.put(tenant, step)
        if step.state != RunStepState.RUN_STEP_STATE_IN_PROGRESS:
            events.append(facts.step_completed(step))
    if wanted.turn is not None:
        # Only a turn that follows would need it.
        if wanted.state not in lifecycle.FINAL:
            await tx.turns.put(tenant, run.id, wanted.turn)
        run.turns += 1
        run.turn_attempt = 1 if wanted.state == lifecycle.IN_PROGRESS else 0
    if wanted.usage is not None:
        _charge(policy, run, wanted.usage)
    if wanted.open_calls:
        run.required_action.tool_calls.extend(wanted.open_calls)
        events.append(facts.calls_requested(wanted.open_calls))
    if wanted.error is not None:
        run.error.CopyFrom(wanted.error)
    run.incomplete_reason = wanted.incomplete_reason
    if wanted.state == lifecycle.QUEUED:
        # Whoever waits for a model is not the worse for it.
        run.turn_attempt = max(0, run.turn_attempt - 1)
    settled = await move(
        tx,
        tenant,
        run,
        wanted.state,
        events,
        attempt=attempt,
        sequence=sequence,
        now=now,
        wake_time=wanted.wake_time,
    )
    await usage.note(tx, policy, tenant, run, wanted.usage, now=now)
    return settled


async def start_over(
    tx: Transaction,
    tenant: str,
    known: Run,
    used: Usage | None,
    *,
    variant: str,
    degraded: bool,
    lease: Lease,
    policy: Policy,
    now: datetime,
) -> Run:
    """Stores that a broken turn of a run begins again as a new attempt (contract 18), and what the broken one used.
    Raises LeaseLost if the run is no longer this worker's."""
    run, _ = await hold(tx, tenant, known, now=now)
    run.attempt, run.turn_attempt = known.attempt + 1, run.turn_attempt + 1
    run.variant, run.degraded = variant or run.variant, run.degraded or degraded
    if used is not None:
        _charge(policy, run, used)
    await tx.runs.replace(tenant, run, attempt=known.attempt, lease=lease)
    await usage.note(tx, policy, tenant, run, used, now=now)
    return run


async def move(
    tx: Transaction,
    tenant: str,
    run: Run,
    state: "RunState.ValueType",
    events: list[RunEvent],
    *,
    attempt: int,
    sequence: int,
    now: datetime,
    lease: Lease | None = None,
    wake_time: datetime | None = None,
) -> Settled:
    """Stores the run in a state (perhaps the same), with `last_sequence` behind the events and the fact of the change,
    which is added to them. `attempt` is the stored one; `lease` gives a new lease; before `wake_time` nobody claims the
    run. The thread must be locked. An end lets the next run in line begin."""
    lifecycle.check(run.state, state)
    changed = state != run.state
    run.state = state
    if state != lifecycle.QUEUED:
        run.ClearField("estimated_start_time")
    if state in lifecycle.FINAL:
        run.end_time.CopyFrom(timestamp(now))
        run.ClearField("required_action")
    run.last_sequence = sequence + len(events) + changed
    others_wait = await tx.runs.replace(tenant, run, attempt=attempt, lease=lease, wake_time=wake_time)
    if changed:
        events.append(facts.state_changed(run))
    facts.number(events, sequence, now)
    ended = state in lifecycle.FINAL
    begins = ended and await line.advance(tx, tenant, run, others_wait=others_wait)
    # A run that is parked is nobody's to claim.
    waits = state == lifecycle.QUEUED and wake_time is None
    return Settled(run, events, queued=begins or waits, ended=tenant if ended else "")


async def end_waiting(tx: Transaction, tenant: str, run: Run, state: "RunState.ValueType", *, now: datetime) -> Settled:
    """Ends a run that no worker holds: QUEUED or REQUIRES_ACTION becomes CANCELLED or EXPIRED. It must be locked behind
    its thread."""
    step_state = (
        RunStepState.RUN_STEP_STATE_CANCELLED if state == lifecycle.CANCELLED else RunStepState.RUN_STEP_STATE_EXPIRED
    )
    events: list[RunEvent] = []
    await tx.threads.touch(tenant, run.thread_id, now)
    if run.state == lifecycle.REQUIRES_ACTION:
        for step in await tx.steps.page(tenant, run.id):
            if step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS:
                step.state = step_state
                step.end_time.CopyFrom(timestamp(now))
                await tx.steps.put(tenant, step)
                events.append(facts.step_completed(step))
    else:
        # Those of a run in line, which will never join the thread.
        await tx.runs.take_messages(tenant, run.id)
    settled = await move(tx, tenant, run, state, events, attempt=run.attempt, sequence=run.last_sequence, now=now)
    await tx.usages.put(tenant, run)
    return settled


def cancelled(wanted: Settlement) -> Settlement:
    """The same work, ended by a cancel: what was written stays, marked (contract 19)."""
    reason = MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED
    messages, steps = [], []
    for original in wanted.messages:
        message = copy_of(original)
        message.state, message.incomplete_reason = MessageState.MESSAGE_STATE_INCOMPLETE, reason
        messages.append(message)
    for old in wanted.steps:
        step = copy_of(old)
        step.state = RunStepState.RUN_STEP_STATE_CANCELLED
        steps.append(step)
    return replace(
        wanted,
        state=lifecycle.CANCELLED,
        messages=messages,
        steps=steps,
        open_calls=(),
        error=None,
        incomplete_reason=RunIncompleteReason.RUN_INCOMPLETE_REASON_UNSPECIFIED,
    )


def _charge(policy: Policy, run: Run, used: Usage) -> None:
    prices.set_cost(policy, run, used)
    turn.add_usage(run.usage, used)
