"""One attempt at a run: model turns until it ends, waits for its caller, or is interrupted."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import structlog

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunError, RunErrorCode, RunIncompleteReason, Usage
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.engine import facts, lifecycle, outcomes, prompt, tracing
from famulus_server.engine.asking import Asking, Parked, Question
from famulus_server.engine.control import Control, Interrupted, Interruption
from famulus_server.engine.feed import Draft, Feed
from famulus_server.engine.ledger import Ledger, Settled
from famulus_server.engine.packing import Packer
from famulus_server.engine.policy import Policies
from famulus_server.engine.progress import Progress
from famulus_server.engine.routing import Router
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.engine.settlement import Settlement, hold, settle, start_over
from famulus_server.engine.turn import TurnRecorder
from famulus_server.engine.turnstile import Turnstile
from famulus_server.errors import LeaseLost, ModelError, ModelProtocolError, ModelRemoved, NotFound, Unavailable
from famulus_server.ports import (
    UNTRACED,
    Claimed,
    Clock,
    Ids,
    Lease,
    Span,
    Store,
    ThreadCache,
    Tracer,
    Transaction,
    Turn,
    TurnEnded,
    TurnOutcome,
)

# How often one model turn may be started: crashes of workers and broken streams together (contract 16).
MAX_TURN_ATTEMPTS = 3
_SECOND_PAUSE = 1.0
# Between tries while the store is away.
_STORE_PAUSE = 0.25
_MAX_PAUSE = 10.0
# How many runs store what a turn made at the same time. Where many end together, what others say is shown meanwhile: it
# does not wait until all of them are stored.
_MOST_SETTLING = 8
_TURN_SECONDS = 1.0
# What a worker that stops working on a run leaves instead of its lease: anybody may claim the run at once.
NOBODYS = Lease(owner="", seconds=0)


_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Executor:
    """Executes runs that a worker has claimed."""

    def __init__(
        self,
        *,
        store: Store,
        thread_cache: ThreadCache,
        feed: Feed,
        ledger: Ledger,
        router: Router,
        asking: Asking,
        policies: Policies,
        metrics: RunMetrics,
        lease: Lease,
        clock: Clock,
        ids: Ids,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._thread_cache = thread_cache
        self._feed = feed
        self._ledger = ledger
        self._router = router
        self._asking = asking
        self._policies = policies
        self._metrics = metrics
        self._lease = lease
        self._clock = clock
        self._ids = ids
        self._tracer = tracer
        self._settling = Turnstile(most=_MOST_SETTLING, seconds=_TURN_SECONDS)

    async def execute(self, claimed: Claimed, control: Control) -> None:
        """Works on the run until it is released. Raises nothing but cancellation."""
        with tracing.begin(self._tracer, claimed) as span:
            await self._execute(claimed, control, span)

    async def _execute(self, claimed: Claimed, control: Control, span: Span) -> None:
        try:
            progress = self._begin(claimed, control, span)
            try:
                await self._work(progress)
            except (LeaseLost, Unavailable):
                raise
            except Exception:  # noqa: BLE001 - whatever it is, the run must end
                _log.exception("run failed")
                error = RunError(code=RunErrorCode.RUN_ERROR_CODE_SERVER_ERROR, message="the service failed")
                await self._settle(progress, Settlement(state=lifecycle.FAILED, error=error))
            _log.info("run released", **tracing.release(span, progress.run))
        except LeaseLost:
            _log.info("run given up")
            await self._forget_deleted(claimed)
        except Unavailable:
            # The lease runs out, and whoever finds the store again takes the run over.
            _log.warning("store unavailable, run left to be taken over")
        except Exception:  # noqa: BLE001 - nobody else would tell of it
            _log.exception("run left to be taken over")

    async def _forget_deleted(self, claimed: Claimed) -> None:
        """Whatever was published of a run behind its deletion goes, too (contract 24)."""
        with contextlib.suppress(Unavailable):
            try:
                await self._store.read(lambda tx: tx.runs.get(claimed.tenant, claimed.run.id))
            except NotFound:
                self._feed.drop(claimed.run.id)

    def _begin(self, claimed: Claimed, control: Control, span: Span) -> Progress:
        run = claimed.run
        log = self._feed.open(run.id, run.last_sequence) if claimed.taken_over else self._feed.find(run.id)
        if log is None:
            # Whoever stored the run has published so, therefore it has been deleted since.
            raise LeaseLost(run.id)
        self._feed.own(run.id)
        log.stored_sequence = run.last_sequence
        progress = Progress(claimed.tenant, run, log, control, log.last_sequence, span, claimed.thread)
        if claimed.taken_over:
            progress.sequence = facts.sequence_base(run.attempt)
            self._tell(progress, facts.attempt_started(run.attempt, run.last_sequence))
        return progress

    async def _work(self, progress: Progress) -> None:
        if progress.run.turn_attempt > MAX_TURN_ATTEMPTS:
            error = RunError(
                code=RunErrorCode.RUN_ERROR_CODE_WORKER_LOST,
                message=f"{MAX_TURN_ATTEMPTS} workers were lost on this run",
            )
            await self._settle(progress, Settlement(state=lifecycle.FAILED, error=error))
            return
        if progress.run.turns:
            await self._load(progress)
        while progress.run.state in lifecycle.OWNED:
            if progress.run.state == lifecycle.CANCELLING:
                # Nobody tells of a cancel that was stored before this worker, or while it started over.
                progress.control.interrupt(Interruption.CANCEL)
            await self._turn(progress)

    async def _load(self, progress: Progress) -> None:
        """Reads what earlier turns made."""
        tenant, run_id = progress.tenant, progress.run.id

        async def read(tx: Transaction) -> tuple[list[Turn], list[RunStep]]:
            return await tx.turns.all(tenant, run_id), await tx.steps.page(tenant, run_id)

        progress.turns, steps = await self._insist(progress, lambda: self._store.read(read))
        progress.next_position = steps[-1].position + 1 if steps else 1
        progress.call_ids = {call.id for step in steps for call in step.tool_calls.tool_calls}

    async def _turn(self, progress: Progress) -> None:
        run = progress.run
        if run.HasField("max_prompt_tokens") and run.usage.prompt_tokens >= run.max_prompt_tokens:
            await self._settle(progress, outcomes.out_of_prompt())
            return
        recorder = TurnRecorder(
            run=run,
            next_position=progress.next_position,
            taken_call_ids=progress.call_ids,
            clock=self._clock,
            ids=self._ids,
        )
        question: Question | None = None
        progress.log.draft = recorder.draft
        try:
            with progress.control.interruptible():
                question = await self._question(progress)
                if question.made.fits or not progress.turns:
                    await self._listen(progress, recorder, question)
            if recorder.ended is None:
                # Outputs of tools, or messages that came in: they are sent whole or not at all.
                await self._settle(progress, outcomes.out_of_prompt())
            else:
                await self._turn_ended(progress, recorder, question, recorder.ended)
        except Interrupted as interrupted:
            await self._interrupted(progress, interrupted.why, recorder, question)
        except _Expired:
            wanted = outcomes.broken_off(recorder, question, lifecycle.EXPIRED, outcomes.EXPIRED)
            await self._settle(progress, wanted)
        except ModelError as error:
            await self._model_failed(progress, recorder, question, error)
        except Parked as parked:
            self._tell(progress, facts.retry_scheduled(parked.code, parked.seconds))
            tracing.park(progress.span, parked.code, parked.seconds)
            wake_time = self._clock.now() + timedelta(seconds=parked.seconds)
            await self._settle(progress, Settlement(state=lifecycle.QUEUED, wake_time=wake_time))
        finally:
            # Not before what the turn made is stored and told: a Snapshot must find it in one place or the other.
            if progress.log.draft == recorder.draft:
                progress.log.draft = Draft

    async def _question(self, progress: Progress) -> Question:
        tenant, run, turns = progress.tenant, progress.run, progress.turns
        card = self._router.card(run.model)
        if card is None:
            raise ModelRemoved("no model of this name")
        # Known for the first try at the first turn: behind that, others may have said something.
        thread, progress.thread = progress.thread, None
        made = await self._insist(
            progress, lambda: prompt.build(self._store, self._thread_cache, tenant, run, card, turns, thread=thread)
        )
        return Question(tenant=tenant, run=run, made=made, avoid=progress.avoid)

    async def _listen(self, progress: Progress, recorder: TurnRecorder, question: Question) -> None:
        """Shows what the model says, as it comes, until its terminal event."""
        try:
            async with (
                asyncio.timeout(progress.seconds_left(self._clock.now())) as expiry,
                contextlib.aclosing(self._asking.stream(question)) as stream,
            ):
                async for events in stream:
                    tracing.retries(progress.span, events)
                    packer = progress.packer(self._clock.now())
                    recorder.take(events, packer)
                    self._publish(progress, packer)
                    if recorder.ended is not None:
                        # Whoever watches is shown the last of it before the end is prepared.
                        await asyncio.sleep(0)
        except TimeoutError:
            if expiry.expired():
                raise _Expired from None
            raise
        if recorder.ended is None:
            raise ModelProtocolError("the stream ended without its terminal event")

    async def _turn_ended(
        self, progress: Progress, recorder: TurnRecorder, question: Question, ended: TurnEnded
    ) -> None:
        run = progress.run
        usage = ended.usage or outcomes.estimate_usage(recorder, question) or Usage()
        items: Sequence[Mapping[str, Any]] = ()
        if ended.outcome is TurnOutcome.MAX_TOKENS:
            wanted = outcomes.broken_off(recorder, question, lifecycle.INCOMPLETE, outcomes.MAX_TOKENS)
        elif ended.outcome is TurnOutcome.CONTENT_FILTER:
            wanted = outcomes.broken_off(recorder, question, lifecycle.INCOMPLETE, outcomes.CONTENT_FILTER)
        else:
            result = recorder.finish()
            wanted, items = outcomes.whole(run, result), result.items
        limit = run.max_completion_tokens if run.HasField("max_completion_tokens") else None
        used = run.usage.completion_tokens + usage.completion_tokens
        if limit is not None and used >= limit and wanted.state not in lifecycle.FINAL:
            wanted = outcomes.out_of(RunIncompleteReason.RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS, wanted)
        record = Turn(number=run.turns + 1, seen_sequence=question.made.seen_sequence, items=items)
        wanted = replace(wanted, turn=record, usage=usage, variant=question.variant, degraded=question.degraded)
        await self._settle(progress, wanted)
        progress.turns.append(record)
        progress.avoid.clear()
        progress.next_position += len(wanted.steps)
        progress.call_ids.update(call.id for step in wanted.steps for call in step.tool_calls.tool_calls)

    async def _model_failed(
        self, progress: Progress, recorder: TurnRecorder, question: Question | None, error: ModelError
    ) -> None:
        run = progress.run
        _log.warning(
            "model turn failed",
            model=question.variant if question else run.model,
            error=type(error).__name__,
            detail=str(error),
            heard=recorder.heard,
        )
        usage = outcomes.estimate_usage(recorder, question)
        if question is not None and recorder.heard and error.may_retry and run.turn_attempt < MAX_TURN_ATTEMPTS:
            progress.avoid.add(question.variant)
            await self._start_over(progress, question, usage, error)
            return
        public = RunError(code=error.code, message=error.public)
        wanted = Settlement(state=lifecycle.FAILED, error=public, usage=usage)
        if question is not None:
            wanted = replace(wanted, variant=question.variant, degraded=question.degraded)
        await self._settle(progress, wanted)

    async def _start_over(self, progress: Progress, question: Question, usage: Usage | None, error: ModelError) -> None:
        """A retry after the first chunk is a new attempt, counted in SQL (contract 18); what the broken one cost is
        counted, too."""
        known, policy, now = progress.run, self._policies.current, self._clock.now()

        async def unit(tx: Transaction) -> Run:
            return await start_over(
                tx,
                progress.tenant,
                known,
                usage,
                variant=question.variant,
                degraded=question.degraded,
                lease=self._lease,
                policy=policy,
                now=now,
            )

        stored, pause = known.last_sequence, _pause(error, known.turn_attempt)
        progress.run = await self._insist(progress, lambda: self._store.write(unit))
        self._metrics.used(progress.tenant, progress.run, usage)
        self._tell(progress, facts.attempt_started(progress.run.attempt, stored))
        tracing.start_over(progress.span, progress.run)
        if pause:
            self._tell(progress, facts.retry_scheduled(error.code, pause))
            tracing.retry(progress.span, error.code, pause)
            # An interruption, or the end of the run's time, is dealt with by the turn that follows.
            with contextlib.suppress(Interrupted), progress.control.interruptible():
                await asyncio.sleep(min(pause, max(0.0, progress.seconds_left(self._clock.now()))))

    async def _interrupted(
        self, progress: Progress, why: Interruption, recorder: TurnRecorder, question: Question | None
    ) -> None:
        match why:
            case Interruption.CANCEL:
                await self._settle(
                    progress, outcomes.broken_off(recorder, question, lifecycle.CANCELLED, outcomes.CANCELLED)
                )
            case Interruption.DRAIN:
                await self._release(progress)
                raise LeaseLost(progress.run.id)
            case Interruption.LEASE_LOST:
                raise LeaseLost(progress.run.id)

    async def _release(self, progress: Progress) -> None:
        """Gives the lease back at once, so that nobody has to wait for it to run out (contract 29)."""
        known, now = progress.run, self._clock.now()

        async def unit(tx: Transaction) -> None:
            run, _ = await hold(tx, progress.tenant, known, now=now)
            # This stop is nobody's failure: it does not count against the turn.
            run.turn_attempt = max(0, run.turn_attempt - 1)
            await tx.runs.replace(progress.tenant, run, attempt=known.attempt, lease=NOBODYS)

        await self._store.write(unit)

    async def _settle(self, progress: Progress, wanted: Settlement) -> None:
        known, policy, now = progress.run, self._policies.current, self._clock.now()

        async def unit(tx: Transaction) -> Settled:
            sequence = progress.sequence
            return await settle(tx, progress.tenant, known, sequence=sequence, wanted=wanted, policy=policy, now=now)

        async def store() -> Settled:
            async with self._settling.turn():
                return await self._ledger.write(known.id, unit)

        settled = await self._insist(progress, store)
        progress.run, progress.sequence = settled.run, settled.run.last_sequence
        self._metrics.used(progress.tenant, settled.run, wanted.usage)
        self._metrics.called(settled.run, wanted.steps)

    async def _insist(self, progress: Progress, action: Callable[[], Awaitable[T]]) -> T:
        """Reads or writes, again and again while the store is away and the run is ours: a turn was paid for."""
        while True:
            try:
                return await action()
            except Unavailable:
                if progress.control.giving_up:
                    raise
                await asyncio.sleep(_STORE_PAUSE)

    def _tell(self, progress: Progress, event: RunEvent) -> None:
        packer = progress.packer(self._clock.now())
        packer.add(event)
        self._publish(progress, packer)

    def _publish(self, progress: Progress, packer: Packer) -> None:
        if progress.log.deleted:
            raise LeaseLost(progress.run.id)
        if batches := packer.close():
            progress.sequence = batches[-1].last
            self._feed.publish(progress.run.id, batches)


class _Expired(Exception):
    """The run's expire_time came during a turn."""


def _pause(error: ModelError, turn_attempt: int) -> float:
    """Seconds before a broken turn is started over: a first break may be chance."""
    if error.retry_after is not None:
        return min(error.retry_after, _MAX_PAUSE)
    return 0.0 if turn_attempt == 1 else _SECOND_PAUSE
