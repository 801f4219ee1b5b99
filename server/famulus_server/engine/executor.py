"""One attempt at a run: model turns until it ends, waits for its caller, or is interrupted."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import structlog

from famulus.v1.message_pb2 import MessageIncompleteReason
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunError, RunErrorCode, RunIncompleteReason, RunState
from famulus.v1.run_step_pb2 import RunStepState
from famulus_server.engine import facts, lifecycle, prompt, turn
from famulus_server.engine.feed import Draft, Feed, RunLog
from famulus_server.engine.prompt import Prompt
from famulus_server.engine.settlement import Settled, Settlement, publish_settled, settle
from famulus_server.engine.turn import TurnRecorder, TurnResult
from famulus_server.errors import LeaseLost, ModelError, ModelProtocolError, ModelRejectedRequest, NotFound, Unavailable
from famulus_server.ports import Claimed, Clock, Ids, Lease, ModelEvent, Models, Store, Transaction, Turn, TurnOutcome

# How often one model turn may be started: crashes of workers and broken streams together (contract 16).
MAX_TURN_ATTEMPTS = 3
# What a worker that stops working on a run leaves instead of its lease: anybody may claim the run at once.
NOBODYS = Lease(owner="", seconds=0)


@dataclass(frozen=True, slots=True)
class _Break:
    """How a turn that was broken off marks its messages, its steps and the run."""

    message: "MessageIncompleteReason.ValueType"
    step: "RunStepState.ValueType"
    run: "RunIncompleteReason.ValueType" = RunIncompleteReason.RUN_INCOMPLETE_REASON_UNSPECIFIED


_CANCELLED = _Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_CANCELLED, RunStepState.RUN_STEP_STATE_CANCELLED
)
_EXPIRED = _Break(MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_RUN_EXPIRED, RunStepState.RUN_STEP_STATE_EXPIRED)
_MAX_TOKENS = _Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_MAX_TOKENS,
    RunStepState.RUN_STEP_STATE_INCOMPLETE,
    RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
)
_CONTENT_FILTER = _Break(
    MessageIncompleteReason.MESSAGE_INCOMPLETE_REASON_CONTENT_FILTER,
    RunStepState.RUN_STEP_STATE_INCOMPLETE,
    RunIncompleteReason.RUN_INCOMPLETE_REASON_CONTENT_FILTER,
)

_log = structlog.get_logger(__name__)


class Interruption(Enum):
    """Why a worker stops working on a run."""

    CANCEL = "cancel"  # the caller asked; the store knows
    LEASE_LOST = "lease lost"  # the run is somebody else's, or gone
    DRAIN = "drain"  # this process ends; another worker goes on


class Interrupted(Exception):
    """Raised inside an execution when somebody interrupted it."""

    def __init__(self, why: Interruption) -> None:
        super().__init__(why.value)
        self.why = why


class Control:
    """The outside's grip on one execution."""

    def __init__(self) -> None:
        self._why: Interruption | None = None
        self._task: asyncio.Task[None] | None = None

    def interrupt(self, why: Interruption) -> None:
        """Stops the model turn under way. The first reason counts; later ones change nothing."""
        if self._why is None:
            self._why = why
            if self._task is not None:
                self._task.cancel()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this, an interruption raises Interrupted; elsewhere it waits for the next such place."""
        if self._why is not None:
            raise Interrupted(self._why)
        self._task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self._why is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise Interrupted(self._why) from None
        finally:
            self._task = None


@dataclass(slots=True)
class _Progress:
    """What an execution knows of its run. `sequence` is that of the last event published."""

    tenant: str
    run: Run
    log: RunLog
    sequence: int
    turns: list[Turn]
    next_position: int
    call_ids: set[str]


class Executor:
    """Executes runs that a worker has claimed."""

    def __init__(self, *, store: Store, feed: Feed, models: Models, lease: Lease, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._feed = feed
        self._models = models
        self._lease = lease
        self._clock = clock
        self._ids = ids

    async def execute(self, claimed: Claimed, control: Control) -> None:
        """Works on the run until it is released. Raises nothing but cancellation."""
        log = _log.bind(run_id=claimed.run.id, thread_id=claimed.run.thread_id, attempt=claimed.run.attempt)
        try:
            progress = await self._begin(claimed)
            try:
                await self._work(progress, control)
            except (LeaseLost, Unavailable):
                raise
            except Exception:
                log.exception("run failed")
                error = RunError(code=RunErrorCode.RUN_ERROR_CODE_SERVER_ERROR, message="the service failed")
                await self._settle(progress, Settlement(state=lifecycle.FAILED, error=error))
        except LeaseLost:
            log.info("lease lost")
        except Unavailable:
            # The lease runs out, and whoever finds the store again takes the run over.
            log.warning("store unavailable, run left to be taken over")
        except Exception:
            log.exception("run left to be taken over")

    async def _begin(self, claimed: Claimed) -> _Progress:
        tenant, run = claimed.tenant, claimed.run
        turns: list[Turn] = []
        position, call_ids = 1, set[str]()
        if run.turns:

            async def load(tx: Transaction) -> tuple[list[Turn], int, set[str]]:
                steps = await tx.steps.page(tenant, run.id)
                calls = {call.id for step in steps for call in step.tool_calls.tool_calls}
                return await tx.turns.all(tenant, run.id), len(steps) + 1, calls

            turns, position, call_ids = await self._store.read(load)
        log = self._feed.open(run.id, run.last_sequence) if claimed.taken_over else self._feed.find(run.id)
        if log is None:
            # Whoever stored the run has published so, therefore it has been deleted since.
            raise LeaseLost(run.id)
        progress = _Progress(tenant, run, log, log.last_sequence, turns, position, call_ids)
        if claimed.taken_over:
            progress.sequence = facts.sequence_base(run.attempt)
            self._publish(progress, [facts.attempt_started(run.attempt, run.last_sequence)])
        return progress

    async def _work(self, progress: _Progress, control: Control) -> None:
        if progress.run.turn_attempt > MAX_TURN_ATTEMPTS:
            error = RunError(
                code=RunErrorCode.RUN_ERROR_CODE_WORKER_LOST,
                message=f"{MAX_TURN_ATTEMPTS} workers were lost on this run",
            )
            await self._settle(progress, Settlement(state=lifecycle.FAILED, error=error))
            return
        while progress.run.state in lifecycle.OWNED:
            if progress.run.state == lifecycle.CANCELLING:
                # Nobody tells of a cancel that was stored before this worker, or while it started over.
                control.interrupt(Interruption.CANCEL)
            await self._turn(progress, control)

    async def _turn(self, progress: _Progress, control: Control) -> None:
        run = progress.run
        if run.HasField("max_prompt_tokens") and run.usage.prompt_tokens >= run.max_prompt_tokens:
            reason = RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_PROMPT_TOKENS
            await self._settle(progress, Settlement(state=lifecycle.INCOMPLETE, incomplete_reason=reason))
            return
        recorder = TurnRecorder(
            run=run,
            next_position=progress.next_position,
            taken_call_ids=progress.call_ids,
            clock=self._clock,
            ids=self._ids,
        )
        try:
            with control.interruptible():
                card = self._models.card(run.model)
                if card is None:
                    raise ModelRejectedRequest("the configuration no longer has this model")
                made = await prompt.build(self._store, progress.tenant, run, card, progress.turns)
                await self._listen(progress, recorder, made)
        except Interrupted as interrupted:
            await self._interrupted(progress, interrupted.why, recorder)
        except _Expired:
            await self._settle(progress, _broken_off(recorder, lifecycle.EXPIRED, _EXPIRED))
        except ModelError as error:
            await self._model_failed(progress, recorder, error)
        else:
            await self._turn_ended(progress, recorder, made)

    async def _listen(self, progress: _Progress, recorder: TurnRecorder, made: Prompt) -> None:
        """Shows what the model says, as it comes, until its terminal event."""
        remaining = (progress.run.expire_time.ToDatetime(self._clock.now().tzinfo) - self._clock.now()).total_seconds()
        progress.log.draft = recorder.draft
        try:
            async with asyncio.timeout(remaining) as expiry, contextlib.aclosing(self._open(made)) as stream:
                async for events in stream:
                    self._publish(progress, recorder.take(events))
        except TimeoutError:
            if expiry.expired():
                raise _Expired from None
            raise
        finally:
            progress.log.draft = Draft
        if recorder.ended is None:
            raise ModelProtocolError("the stream ended without its terminal event")

    def _open(self, made: Prompt) -> AsyncGenerator[list[ModelEvent], None]:
        return self._models.open(made.request.model).stream(made.request)

    async def _turn_ended(self, progress: _Progress, recorder: TurnRecorder, made: Prompt) -> None:
        run, ended = progress.run, recorder.ended
        assert ended is not None  # noqa: S101 - _listen saw to it
        if ended.usage is None:
            ended.usage = turn.estimated_usage(made.estimated_tokens, prompt.estimate_length(recorder.characters))
        items: Sequence[Mapping[str, Any]] = ()
        if ended.outcome is TurnOutcome.MAX_TOKENS:
            wanted = _broken_off(recorder, lifecycle.INCOMPLETE, _MAX_TOKENS)
        elif ended.outcome is TurnOutcome.CONTENT_FILTER:
            wanted = _broken_off(recorder, lifecycle.INCOMPLETE, _CONTENT_FILTER)
        else:
            result = recorder.finish()
            wanted, items = _whole(run, result), result.items
        limit = run.max_completion_tokens if run.HasField("max_completion_tokens") else None
        used = run.usage.completion_tokens + ended.usage.completion_tokens
        if limit is not None and used >= limit and wanted.state not in lifecycle.FINAL:
            wanted = _out_of(RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS, wanted)
        record = Turn(number=run.turns + 1, seen_sequence=made.seen_sequence, items=items)
        await self._settle(progress, replace(wanted, turn=record, usage=ended.usage))
        progress.turns.append(record)
        progress.next_position += len(wanted.steps)
        progress.call_ids.update(call.id for step in wanted.steps for call in step.tool_calls.tool_calls)

    async def _model_failed(self, progress: _Progress, recorder: TurnRecorder, error: ModelError) -> None:
        run = progress.run
        _log.warning(
            "model turn failed",
            run_id=run.id,
            model=run.model,
            error=type(error).__name__,
            detail=str(error),
            shown=recorder.has_shown,
        )
        if recorder.has_shown and error.may_retry and run.turn_attempt < MAX_TURN_ATTEMPTS:
            await self._start_over(progress)
            return
        public = RunError(code=error.code, message=error.public)
        await self._settle(progress, Settlement(state=lifecycle.FAILED, error=public))

    async def _start_over(self, progress: _Progress) -> None:
        """A retry after the first delta is a new attempt, counted in SQL (contract 18)."""
        tenant, run_id, attempt = progress.tenant, progress.run.id, progress.run.attempt

        async def unit(tx: Transaction) -> Run:
            try:
                run = await tx.runs.get(tenant, run_id, lock=True)
            except NotFound as error:
                raise LeaseLost(run_id) from error
            run.attempt, run.turn_attempt = attempt + 1, run.turn_attempt + 1
            await tx.runs.replace(tenant, run, attempt=attempt, lease=self._lease)
            return run

        stored = progress.run.last_sequence
        progress.run = await self._store.write(unit)
        self._publish(progress, [facts.attempt_started(progress.run.attempt, stored)])

    async def _interrupted(self, progress: _Progress, why: Interruption, recorder: TurnRecorder) -> None:
        match why:
            case Interruption.CANCEL:
                await self._settle(progress, _broken_off(recorder, lifecycle.CANCELLED, _CANCELLED))
            case Interruption.DRAIN:
                await self._release(progress)
                raise LeaseLost(progress.run.id)
            case Interruption.LEASE_LOST:
                raise LeaseLost(progress.run.id)

    async def _release(self, progress: _Progress) -> None:
        """Gives the lease back at once, so that nobody has to wait for it to run out (contract 29)."""
        tenant, run_id, attempt = progress.tenant, progress.run.id, progress.run.attempt

        async def unit(tx: Transaction) -> None:
            run = await tx.runs.get(tenant, run_id, lock=True)
            # This stop is nobody's failure: it does not count against the turn.
            run.turn_attempt = max(0, run.turn_attempt - 1)
            await tx.runs.replace(tenant, run, attempt=attempt, lease=NOBODYS)

        await self._store.write(unit)

    async def _settle(self, progress: _Progress, wanted: Settlement) -> None:
        run, now = progress.run, self._clock.now()

        async def unit(tx: Transaction) -> Settled:
            return await settle(
                tx,
                progress.tenant,
                run.id,
                attempt=run.attempt,
                sequence=progress.sequence,
                wanted=wanted,
                now=now,
            )

        settled = await publish_settled(self._store, self._feed, run.id, unit)
        progress.run, progress.sequence = settled.run, settled.run.last_sequence
        progress.log.stored_sequence = progress.sequence

    def _publish(self, progress: _Progress, events: Sequence[RunEvent]) -> None:
        if progress.log.deleted:
            raise LeaseLost(progress.run.id)
        if events:
            progress.sequence = facts.number(events, progress.sequence, self._clock.now())
            self._feed.publish(progress.run.id, events)


class _Expired(Exception):
    """The run's expire_time came during a turn."""


def _whole(run: Run, result: TurnResult) -> Settlement:
    """What follows from a turn that the model completed."""
    wanted = Settlement(
        state=lifecycle.COMPLETED,
        messages=result.messages,
        steps=result.steps,
    )
    if not result.has_calls:
        return wanted
    if run.turns + 1 >= run.max_turns:
        return _out_of(RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_TURNS, wanted)
    if result.open_calls:
        return replace(wanted, state=lifecycle.REQUIRES_ACTION, open_calls=result.open_calls)
    return replace(wanted, state=lifecycle.IN_PROGRESS)


def _out_of(reason: "RunIncompleteReason.ValueType", wanted: Settlement) -> Settlement:
    """The same work, but no further turn: calls that nobody will answer are closed, and not asked for."""
    for step in wanted.steps:
        if step.state == RunStepState.RUN_STEP_STATE_IN_PROGRESS:
            step.state = RunStepState.RUN_STEP_STATE_INCOMPLETE
    return replace(wanted, state=lifecycle.INCOMPLETE, open_calls=(), incomplete_reason=reason)


def _broken_off(recorder: TurnRecorder, state: "RunState.ValueType", how: _Break) -> Settlement:
    """A turn that ends early and keeps what was written (contract 19)."""
    result = recorder.abandon(how.message, how.step)
    return Settlement(state=state, messages=result.messages, steps=result.steps, incomplete_reason=how.run)
