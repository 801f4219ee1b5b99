"""RunService."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    CancelRunResponse,
    CreateRunRequest,
    CreateRunResponse,
    GetRunRequest,
    GetRunResponse,
    GetRunStepRequest,
    GetRunStepResponse,
    ListRunsRequest,
    ListRunsResponse,
    ListRunStepsRequest,
    ListRunStepsResponse,
    RateRunRequest,
    RateRunResponse,
    StreamRunRequest,
    SubmitToolOutputsRequest,
    SubmitToolOutputsResponse,
    UpdateRunRequest,
    UpdateRunResponse,
    WaitRunRequest,
    WaitRunResponse,
    WatchRunRequest,
)
from famulus.v1.run_service_pb2_grpc import RunServiceServicer
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.api.calls import current_call, current_tenant, log_ids
from famulus_server.api.draining import Drain
from famulus_server.api.errands import Errands
from famulus_server.api.pages import Pages, fitting
from famulus_server.api.request_ids import repeat_key
from famulus_server.api.validation import runs as validation
from famulus_server.engine.runs import RunDesk
from famulus_server.engine.watch import Watch
from famulus_server.ports import Cursor, Metrics, RunFilter
from famulus_server.ports.metrics import STREAM_EVENTS, STREAM_RESPONSES

_MAX_RESPONSE_BYTES = 3 * 1024 * 1024  # of a WaitRunResponse: gRPC's clients accept 4 MiB, and a message may be 1 MiB


class RunServicer(RunServiceServicer):
    """Runs and their events."""

    def __init__(
        self, *, runs: RunDesk, watch: Watch, pages: Pages, drain: Drain, errands: Errands, metrics: Metrics
    ) -> None:
        self._runs = runs
        self._watch = watch
        self._pages = pages
        self._drain = drain
        self._errands = errands
        self._metrics = metrics

    async def CreateRun(self, request: CreateRunRequest, _: object) -> CreateRunResponse:
        validation.check_create(request)
        return CreateRunResponse(run=await self._create(current_tenant(), request))

    # The responses of streams are serialized already.
    def StreamRun(self, request: StreamRunRequest, _: object) -> AsyncIterator[bytes]:  # type: ignore[override]
        validation.check_stream(request)
        return self._events(current_tenant(), request)

    def WatchRun(self, request: WatchRunRequest, _: object) -> AsyncIterator[bytes]:  # type: ignore[override]
        validation.check_watch(request)
        return self._events(current_tenant(), request)

    async def WaitRun(self, request: WaitRunRequest, _: object) -> WaitRunResponse:
        validation.check_one(request)
        async with self._drain.interrupting():
            run, messages = await self._runs.wait(current_tenant(), request.run_id)
        newest = fitting(messages[::-1], _MAX_RESPONSE_BYTES - run.ByteSize())
        return WaitRunResponse(run=run, messages=newest[::-1])

    async def GetRun(self, request: GetRunRequest, _: object) -> GetRunResponse:
        validation.check_one(request)
        return GetRunResponse(run=await self._runs.get(current_tenant(), request.run_id))

    async def ListRuns(self, request: ListRunsRequest, _: object) -> ListRunsResponse:
        validation.check_list(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        which = RunFilter(thread_id=request.thread_id, assistant_id=request.assistant_id, states=tuple(request.states))
        found = await self._runs.page(tenant, which, after=page.after, limit=page.limit)
        shown, token = page.close(found, _by_time)
        return ListRunsResponse(runs=shown, next_page_token=token)

    async def UpdateRun(self, request: UpdateRunRequest, _: object) -> UpdateRunResponse:
        validation.check_update(request)
        return UpdateRunResponse(run=await self._runs.update(current_tenant(), request.run))

    async def CancelRun(self, request: CancelRunRequest, _: object) -> CancelRunResponse:
        validation.check_one(request)
        cancelling = self._runs.cancel(current_tenant(), request.run_id)
        return CancelRunResponse(run=await self._errands.see_through(cancelling))

    async def SubmitToolOutputs(self, request: SubmitToolOutputsRequest, _: object) -> SubmitToolOutputsResponse:
        validation.check_submit(request)
        key = repeat_key("SubmitToolOutputs", request)
        submitting = self._runs.submit(current_tenant(), request.run_id, request.tool_outputs, key)
        return SubmitToolOutputsResponse(run=await self._errands.see_through(submitting))

    async def ListRunSteps(self, request: ListRunStepsRequest, _: object) -> ListRunStepsResponse:
        validation.check_steps(request)
        tenant = current_tenant()
        page = self._pages.of(tenant, request)
        after = page.after.number if page.after else 0
        found = await self._runs.steps(tenant, request.run_id, after_position=after, limit=page.limit)
        shown, token = page.close(found, _by_position)
        return ListRunStepsResponse(steps=shown, next_page_token=token)

    async def GetRunStep(self, request: GetRunStepRequest, _: object) -> GetRunStepResponse:
        validation.check_step(request)
        step = await self._runs.step(current_tenant(), request.run_id, request.step_id)
        return GetRunStepResponse(step=step)

    async def RateRun(self, request: RateRunRequest, _: object) -> RateRunResponse:
        validation.check_rate(request)
        key = repeat_key("RateRun", request)
        return RateRunResponse(run=await self._runs.rate(current_tenant(), request.run_id, request.rating, key))

    async def _create(self, tenant: str, request: CreateRunRequest, *, kept: bool = True) -> Run:
        """Creates a run, seen through even if the caller goes away: what is stored should not wait for a lease to run
        out. Unless it is `kept`, a run that nobody waits for any more is cancelled."""
        # Both methods share their request ids: a lost CreateRun can be resumed as a StreamRun.
        creating = self._runs.create(tenant, request, repeat_key("CreateRun", request))
        cancel = partial(self._cancel, tenant)
        run = await self._errands.see_through(creating, abandoned=None if kept else cancel)
        log_ids(run_id=run.id, thread_id=run.thread_id)
        return run

    async def _events(self, tenant: str, request: StreamRunRequest | WatchRunRequest) -> AsyncGenerator[bytes, None]:
        """Serialized responses. Whatever error ends them tells the sequence after which to resume (contract 13)."""
        call = current_call()
        if isinstance(request, StreamRunRequest):
            known = await self._create(tenant, request.create, kept=not request.cancel_on_disconnect)
            call.made.update(run_id=known.id, thread_id=known.thread_id)
            run_id = known.id
        else:
            known, run_id = None, request.run_id
        call.error_facts["last_sequence"] = str(request.after_sequence)
        watching = self._watch.watch(tenant, run_id, request.after_sequence, known=known)
        try:
            async with aclosing(watching):
                async for batches in self._drain.until_started(watching):
                    if batches:
                        # Before they are sent: an error comes behind them, also where their reader is too slow.
                        call.error_facts["last_sequence"] = str(batches[-1].last)
                    self._metrics.add(STREAM_RESPONSES)
                    self._metrics.add(STREAM_EVENTS, amount=sum(batch.count for batch in batches))
                    yield b"".join(batch.payload for batch in batches)
        except (asyncio.CancelledError, GeneratorExit):
            # A stop of the server also cancels calls in the end, but the caller did not go away then.
            if request.cancel_on_disconnect and not (call.let_go or self._drain.started):
                self._errands.start(self._runs.cancel(tenant, run_id))
            raise

    async def _cancel(self, tenant: str, run: Run) -> None:
        await self._runs.cancel(tenant, run.id)


def _by_time(run: Run) -> Cursor:
    return Cursor(run.create_time.ToMicroseconds(), run.id)


def _by_position(step: RunStep) -> Cursor:
    return Cursor(step.position, step.id)
