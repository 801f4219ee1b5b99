"""What callers can do with runs."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, RunRating
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus.v1.tool_pb2 import ToolOutput
from famulus_server.engine import admission, facts, lifecycle, tools
from famulus_server.engine.admission import Admission
from famulus_server.engine.clock import timestamp
from famulus_server.engine.etags import check_etag
from famulus_server.engine.feed import Feed
from famulus_server.engine.gate import Gate
from famulus_server.engine.ledger import Ledger, Settled
from famulus_server.engine.messages import messages_of, prepare
from famulus_server.engine.packing import events_of
from famulus_server.engine.policy import Policies
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.engine.settlement import end_waiting, lock, move
from famulus_server.engine.threads import ThreadDesk
from famulus_server.engine.watch import Watch
from famulus_server.engine.worker import Worker
from famulus_server.errors import FailedPrecondition
from famulus_server.ports import (
    UNTRACED,
    Claimed,
    Clock,
    Cursor,
    Ids,
    Models,
    Remembered,
    RequestKey,
    RunFilter,
    Store,
    Tracer,
    Transaction,
)

_STOPPED = lifecycle.FINAL | {lifecycle.REQUIRES_ACTION}


class RunDesk:
    """Runs: create, read, cancel, submit, rate."""

    def __init__(
        self,
        *,
        store: Store,
        feed: Feed,
        ledger: Ledger,
        worker: Worker,
        watch: Watch,
        threads: ThreadDesk,
        gate: Gate,
        models: Models,
        policies: Policies,
        metrics: RunMetrics,
        clock: Clock,
        ids: Ids,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._feed = feed
        self._ledger = ledger
        self._worker = worker
        self._watch = watch
        self._threads = threads
        self._gate = gate
        self._models = models
        self._policies = policies
        self._metrics = metrics
        self._clock = clock
        self._ids = ids
        self._tracer = tracer

    async def create(self, tenant: str, request: CreateRunRequest, key: RequestKey | None) -> Run:
        """Starts a run, or returns the one that the same request started before (contract 4, 5). Raises
        ResourceExhausted where the caller has used up what he may use."""
        run_id = self._ids.new("run")
        async with self._gate.passing(tenant, request, key, run_id=run_id) as passing:
            run = await self._admit(tenant, request, key, run_id)
            passing.stays = run.id == run_id
        return run

    async def _admit(self, tenant: str, request: CreateRunRequest, key: RequestKey | None, run_id: str) -> Run:
        now = self._clock.now()
        new_thread = self._threads.prepare(request.new_thread) if request.HasField("new_thread") else None
        reserved = self._worker.reserve()
        wanted = Admission(
            tenant=tenant,
            request=request,
            key=key,
            run_id=run_id,
            new_thread=new_thread,
            messages=prepare(request.additional_messages, ids=self._ids, now=now),
            lease=self._worker.lease if reserved else None,
            policy=self._policies.current,
            now=now,
            traceparent=self._tracer.traceparent(),
        )
        started = False
        try:
            async with await self._order_of_busy(tenant, request):
                admitted = await self._store.write(lambda tx: admission.admit(tx, self._models, wanted))
                for ended in admitted.ended:
                    self._ledger.announce(ended)
            run = admitted.settled.run
            if admitted.created:
                self._metrics.created(tenant, run)
                self._ledger.announce(admitted.settled)
                if admitted.stopping:
                    self._worker.stop(admitted.stopping)
                if run.state == lifecycle.IN_PROGRESS:
                    started = self._start(tenant, run, thread=admitted.thread)
        finally:
            if reserved and not started:
                self._worker.release()
        return run

    async def get(self, tenant: str, run_id: str) -> Run:
        """Raises NotFound."""
        return await self._store.read(lambda tx: tx.runs.get(tenant, run_id))

    async def page(self, tenant: str, which: RunFilter, *, after: Cursor | None, limit: int) -> list[Run]:
        """Newest first."""
        return await self._store.read(lambda tx: tx.runs.page(tenant, which, after=after, limit=limit))

    async def update(self, tenant: str, run: Run) -> Run:
        """Replaces the metadata."""

        async def unit(tx: Transaction) -> Run:
            current = await tx.runs.get(tenant, run.id, lock=True)
            check_etag(run.etag, current.etag)
            current.ClearField("metadata")
            current.metadata.update(run.metadata)
            await tx.runs.replace(tenant, current, attempt=current.attempt)
            return current

        return await self._store.write(unit)

    async def cancel(self, tenant: str, run_id: str) -> Run:
        """Asks a run to stop; returns the state that holds (contract 22)."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> Settled:
            run = await lock(tx, tenant, run_id)
            if run.state in lifecycle.WAITING:
                return await end_waiting(tx, tenant, run, lifecycle.CANCELLED, now=now)
            if run.state == lifecycle.IN_PROGRESS:
                lifecycle.check(run.state, lifecycle.CANCELLING)
                run.state = lifecycle.CANCELLING
                # The fact is published by the worker that has the run, as everything of a run at work is.
                await tx.runs.replace(tenant, run, attempt=run.attempt)
            return Settled(run)

        settled = await self._ledger.write(run_id, unit)
        if settled.run.state == lifecycle.CANCELLING:
            self._worker.stop(run_id)
        return settled.run

    async def submit(self, tenant: str, run_id: str, outputs: Sequence[ToolOutput], key: RequestKey | None) -> Run:
        """Answers all open calls of a run, which then goes on (contract 20)."""
        now = self._clock.now()
        reserved = self._worker.reserve()

        async def unit(tx: Transaction) -> Settled:
            if key is not None and await tx.requests.find(tenant, key) is not None:
                return Settled(await tx.runs.get(tenant, run_id))
            run = await lock(tx, tenant, run_id)
            if key is not None:
                await tx.requests.remember(tenant, key, run_id)
            steps = [step for step in await tx.steps.page(tenant, run_id) if step.HasField("tool_calls")]
            if not tools.apply_outputs(run, steps, outputs):
                return Settled(run)
            step = steps[-1]
            answered = [call for call in step.tool_calls.tool_calls if call.HasField("function")]
            step.state = RunStepState.RUN_STEP_STATE_COMPLETED
            step.end_time.CopyFrom(timestamp(now))
            await tx.threads.touch(tenant, run.thread_id, now)
            await tx.steps.put(tenant, step)
            await self._note_outputs(tx, tenant, run, step)
            run.ClearField("required_action")
            events = [facts.outputs_received(answered), facts.step_completed(step)]
            attempt, sequence = run.attempt, run.last_sequence
            if not reserved:
                return await move(
                    tx, tenant, run, lifecycle.QUEUED, events, attempt=attempt, sequence=sequence, now=now
                )
            run.attempt, run.turn_attempt = attempt + 1, 1
            return await move(
                tx,
                tenant,
                run,
                lifecycle.IN_PROGRESS,
                events,
                attempt=attempt,
                sequence=sequence,
                now=now,
                lease=self._worker.lease,
            )

        started = False
        try:
            settled = await self._ledger.write(run_id, unit)
            self._metrics.answered(settled.facts)
            if settled.facts and reserved:
                started = self._start(tenant, settled.run)
        finally:
            if reserved and not started:
                self._worker.release()
        return settled.run

    async def steps(self, tenant: str, run_id: str, *, after_position: int, limit: int) -> list[RunStep]:
        """In order. Raises NotFound."""

        async def unit(tx: Transaction) -> list[RunStep]:
            await tx.runs.get(tenant, run_id)
            return await tx.steps.page(tenant, run_id, after_position=after_position, limit=limit)

        return await self._store.read(unit)

    async def step(self, tenant: str, run_id: str, step_id: str) -> RunStep:
        """Raises NotFound."""
        return await self._store.read(lambda tx: tx.steps.get(tenant, run_id, step_id))

    async def rate(self, tenant: str, run_id: str, rating: RunRating, key: RequestKey | None) -> Run:
        """Notes a rating of a run that has ended."""
        now = self._clock.now()

        async def unit(tx: Transaction) -> Run:
            if key is not None and await tx.requests.find(tenant, key) is not None:
                return await tx.runs.get(tenant, run_id)
            run = await tx.runs.get(tenant, run_id, lock=True)
            if run.state not in lifecycle.FINAL:
                raise FailedPrecondition(
                    reasons.ERROR_REASON_RUN_NOT_FINISHED, "only a run that has ended can be rated"
                )
            run.rating.CopyFrom(rating)
            run.rating.rate_time.CopyFrom(timestamp(now))
            await tx.runs.replace(tenant, run, attempt=run.attempt)
            await tx.usages.put(tenant, run)
            if key is not None:
                await tx.requests.remember(tenant, key, run_id)
            return run

        run = await self._store.write(unit)
        # Otherwise this request has rated it before.
        if run.rating.rate_time == timestamp(now):
            self._metrics.rated(run.rating)
        return run

    async def wait(self, tenant: str, run_id: str) -> tuple[Run, list[Message]]:
        """Returns once the run has ended or needs action, with the messages it wrote."""

        async def unit(tx: Transaction) -> tuple[Run, list[Message]]:
            stored = await tx.runs.get(tenant, run_id)
            if stored.state not in _STOPPED:
                return stored, []
            return stored, await messages_of(tx, tenant, stored)

        run, messages = await self._store.read(unit)
        # It may go on before it is read again: whoever else watched it was quick to submit outputs.
        while run.state not in _STOPPED:
            await self._until_stopped(tenant, run)
            run, messages = await self._store.read(unit)
        return run, messages

    async def _until_stopped(self, tenant: str, run: Run) -> None:
        async with contextlib.aclosing(self._watch.watch(tenant, run.id, run.last_sequence)) as watching:
            async for batches in watching:
                events = events_of(batches)
                runs = [event.run_state_changed.run for event in events if event.HasField("run_state_changed")]
                runs += [event.snapshot.run for event in events if event.HasField("snapshot")]
                if any(seen.state in _STOPPED for seen in runs):
                    return

    async def _order_of_busy(
        self, tenant: str, request: CreateRunRequest
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """The order of the run that this request interrupts: facts of its end come behind what it told before."""
        if request.busy_policy not in admission.INTERRUPTING or not request.thread_id:
            return contextlib.nullcontext()
        busy = (await self._store.read(lambda tx: tx.threads.get(tenant, request.thread_id))).active_run_id
        return self._feed.order(busy) if busy else contextlib.nullcontext()

    def _start(self, tenant: str, run: Run, *, thread: Remembered | None = None) -> bool:
        """Executes a run that was stored with this worker's lease."""
        self._worker.start(Claimed(tenant, run, taken_over=False, thread=thread))
        return True

    async def _note_outputs(self, tx: Transaction, tenant: str, run: Run, step: RunStep) -> None:
        """Adds the outputs to the turn that made the calls: the next turn sends them to the model."""
        turn = (await tx.turns.all(tenant, run.id))[-1]
        items = [
            tools.output_item(call)
            for call in step.tool_calls.tool_calls
            if call.HasField("function") and not call.function.problem
        ]
        await tx.turns.put(tenant, run.id, replace(turn, items=[*turn.items, *items]))
