"""The events of a run, for asyncio."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from famulus.errors import FamulusError
from famulus.following import Following, open_calls, requested_calls, silence
from famulus.retry import RetryPolicy
from famulus.tools import Toolbox
from famulus.unary import send
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    GetRunRequest,
    StreamRunRequest,
    StreamRunResponse,
    SubmitToolOutputsRequest,
    WatchRunRequest,
    WatchRunResponse,
)
from famulus.v1.tool_pb2 import ToolCall
from famulus.view import RunView

if TYPE_CHECKING:
    from famulus.v1.run_service_pb2_grpc import RunServiceAsyncStub

    EventCall = (
        grpc.aio.UnaryStreamCall[StreamRunRequest, StreamRunResponse]
        | grpc.aio.UnaryStreamCall[WatchRunRequest, WatchRunResponse]
    )

LAST_WORD = 1.0  # seconds that a server has to end a stream after the last event
CANCEL_WITHIN = 5.0  # seconds


class RunStream:
    """The events of one run in order, each once, over as many streams as it takes.

    Enter it (`async with`), then iterate; leaving it cancels the open call and the tools that still run. Iterating ends
    after the last event of the run and raises FamulusError where the run cannot be followed any more. For one task.
    """

    def __init__(
        self,
        *,
        runs: "RunServiceAsyncStub",
        following: Following,
        policy: RetryPolicy,
        toolbox: Toolbox | None,
        cancel_on_exit: bool,
    ) -> None:
        self._runs = runs
        self._following = following
        self._policy = policy
        self._toolbox = toolbox
        self._cancel_on_exit = cancel_on_exit
        self._events: AsyncGenerator[RunEvent, None] | None = None
        self._call: EventCall | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def view(self) -> RunView:
        """The run as of the event that the iteration gave last."""
        return self._following.view

    @property
    def last_sequence(self) -> int:
        """Sequence of the last event: `after_sequence` with which to go on later, from another process too."""
        return self._following.last_sequence

    async def __aenter__(self) -> Self:
        self._events = self._follow()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            await self._events.aclose()
        await self._stop_answering()
        if self._cancel_on_exit and self._following.may_go_on:
            try:
                await self._cancel_run()
            except FamulusError:
                if error is None:  # otherwise that is what the caller needs to know
                    raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        if self._events is None:
            raise RuntimeError("enter the stream first: async with client.stream_run(...) as stream")
        return await anext(self._events)

    async def _follow(self) -> AsyncGenerator[RunEvent, None]:
        following = self._following
        if self._toolbox and self.last_sequence:
            # The event that asked for outputs may be among those seen before.
            self._answer(open_calls(await self._look_up(self._policy)))
        while not following.finished:
            delay = 0.0
            call = self._call = self._join()
            try:
                while not following.finished:
                    for event in await self._read(call):
                        if following.take(event):
                            self._answer(requested_calls(event))
                            if event.WhichOneof("event"):  # not a kind of a newer version
                                yield event
                await self._stop_answering()
                await _drain(call)
            except FamulusError as error:
                delay = following.lost(error)
            finally:
                self._call = None
                call.cancel()
            await asyncio.sleep(delay)

    def _join(self) -> "EventCall":
        if self._failure is not None:
            raise self._failure
        request = self._following.joining()
        if isinstance(request, StreamRunRequest):
            return self._runs.StreamRun(request)
        return self._runs.WatchRun(request)

    async def _read(self, call: "EventCall") -> Sequence[RunEvent]:
        """The next events; none for a heartbeat. Raises FamulusError where the stream broke."""
        try:
            async with asyncio.timeout(self._policy.silence):
                response = await call.read()
        except TimeoutError:
            raise silence(self._policy.silence) from None
        except grpc.RpcError as error:
            raise FamulusError.from_rpc(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._failure is not None and task is not None and not task.cancelling():
                raise self._failure from None
            raise
        if not isinstance(response, StreamRunResponse | WatchRunResponse):
            self._following.ended(await self._look_up(self._policy))
            return ()
        if not response.events:
            self._following.heard()
        return response.events

    async def _look_up(self, policy: RetryPolicy, timeout: float | None = None) -> Run:
        request = self._following.looking_up()
        if isinstance(request, GetRunRequest):
            return (await send(self._runs.GetRun, request, policy=policy, timeout=timeout)).run
        created = await send(self._runs.CreateRun, request, policy=policy, timeout=timeout)
        self.view.name(created.run.id)
        return created.run

    def _answer(self, calls: Iterable[ToolCall]) -> None:
        """Starts to answer those calls that no earlier event asked for."""
        if self._toolbox and (claimed := self._toolbox.claim(calls)):
            task = asyncio.create_task(self._run_tools(self._toolbox, claimed))
            self._answering.add(task)
            task.add_done_callback(self._answered)

    async def _run_tools(self, toolbox: Toolbox, claimed: set[str]) -> None:
        # An old event may ask for what was answered long ago: a tool must not run again for it.
        run = await self._look_up(self._policy)
        calls = [call for call in open_calls(run) if call.id in claimed]
        if not calls:
            return
        request = SubmitToolOutputsRequest(run_id=run.id, tool_outputs=await toolbox.answer_all(calls))
        try:
            await send(self._runs.SubmitToolOutputs, request, policy=self._policy)
        except FamulusError as error:
            # The run has ended, or somebody else was faster: the stream tells.
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
            if self._call is not None:
                self._call.cancel()  # wakes up the reader

    async def _stop_answering(self) -> None:
        tasks = list(self._answering)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cancel_run(self) -> None:
        policy = dataclasses.replace(self._policy, give_up_after=CANCEL_WITHIN)
        run_id = self.view.run_id or (await self._look_up(policy, CANCEL_WITHIN)).id
        await send(self._runs.CancelRun, CancelRunRequest(run_id=run_id), policy=policy, timeout=CANCEL_WITHIN)


async def _drain(call: "EventCall") -> None:
    """Lets the server end the call: cancelled, it would count as failed there."""
    with suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(LAST_WORD):
            while await call.read() is not grpc.aio.EOF:
                pass
