"""The events of a run, for threads."""

import contextvars
import dataclasses
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from famulus.errors import FamulusError
from famulus.following import Following, open_calls, requested_calls, silence
from famulus.retry import RetryPolicy
from famulus.stream import CANCEL_WITHIN, LAST_WORD
from famulus.tools import Toolbox
from famulus.unary import send_blocking
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import (
    CancelRunRequest,
    GetRunRequest,
    StreamRunRequest,
    StreamRunResponse,
    SubmitToolOutputsRequest,
    WatchRunResponse,
)
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.tool_pb2 import ToolCall
from famulus.view import RunView


class EventCall(Protocol):
    """A call that streams events."""

    def __next__(self) -> StreamRunResponse | WatchRunResponse: ...
    def cancel(self) -> object: ...


class SyncRunStream:
    """The events of one run in order, each once, over as many streams as it takes.

    Enter it (`with`), then iterate; leaving it cancels the open call, and outputs of tools that still run are dropped.
    Iterating ends after the last event of the run and raises FamulusError where the run cannot be followed any more.
    For one thread.
    """

    def __init__(
        self,
        *,
        runs: RunServiceStub,
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
        self._events: Generator[RunEvent, None, None] | None = None
        self._lock = threading.Lock()  # for the call and the failure
        self._call: EventCall | None = None
        self._failure: BaseException | None = None
        self._left = threading.Event()
        self._running: list[Future[Any]] = []

    @property
    def view(self) -> RunView:
        """The run as of the event that the iteration gave last."""
        return self._following.view

    @property
    def last_sequence(self) -> int:
        """Sequence of the last event: `after_sequence` with which to go on later, from another process too."""
        return self._following.last_sequence

    def __enter__(self) -> Self:
        self._events = self._follow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
        self._stop_answering()
        if self._cancel_on_exit and self._following.may_go_on:
            try:
                self._cancel_run()
            except FamulusError:
                if error is None:  # otherwise that is what the caller needs to know
                    raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RunEvent:
        if self._events is None:
            raise RuntimeError("enter the stream first: with client.stream_run(...) as stream")
        return next(self._events)

    def _follow(self) -> Generator[RunEvent, None, None]:
        following = self._following
        if self._toolbox and self.last_sequence:
            # The event that asked for outputs may be among those seen before.
            self._answer(open_calls(self._look_up(self._policy)))
        while not following.finished:
            delay = 0.0
            try:
                call = self._join()
            except grpc.RpcError as error:  # there is no token for it
                time.sleep(following.lost(FamulusError.from_rpc(error)))
                continue
            try:
                with Watchdog(call, self._policy.silence) as watchdog:
                    while not following.finished:
                        for event in self._read(watchdog):
                            if following.take(event):
                                self._answer(requested_calls(event))
                                if event.WhichOneof("event"):  # not a kind of a newer version
                                    yield event
                self._stop_answering()
                _drain(call)
            except FamulusError as error:
                delay = following.lost(error)
            finally:
                with self._lock:
                    self._call = None
                call.cancel()
            time.sleep(delay)

    def _join(self) -> EventCall:
        request = self._following.joining()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if isinstance(request, StreamRunRequest):
                self._call = self._runs.StreamRun(request)
            else:
                self._call = self._runs.WatchRun(request)
            return self._call

    def _read(self, watchdog: "Watchdog") -> Sequence[RunEvent]:
        """The next events; none for a heartbeat. Raises FamulusError where the stream broke."""
        try:
            response = watchdog.next_response()
        except StopIteration:
            self._following.ended(self._look_up(self._policy))
            return ()
        except grpc.RpcError as error:
            if self._failure is not None:
                raise self._failure from None
            if watchdog.barked:
                raise silence(self._policy.silence) from None
            raise FamulusError.from_rpc(error) from error
        if not response.events:
            self._following.heard()
        return response.events

    def _look_up(self, policy: RetryPolicy, timeout: float | None = None) -> Run:
        request = self._following.looking_up()
        if isinstance(request, GetRunRequest):
            return send_blocking(self._runs.GetRun, request, policy=policy, timeout=timeout).run
        created = send_blocking(self._runs.CreateRun, request, policy=policy, timeout=timeout)
        self.view.name(created.run.id)
        return created.run

    def _pause(self, seconds: float) -> None:
        if self._left.wait(seconds):
            raise FamulusError("the stream was left", code=grpc.StatusCode.CANCELLED)

    def _answer(self, calls: Iterable[ToolCall]) -> None:
        """Starts to answer those calls that no earlier event asked for."""
        if self._toolbox and (claimed := self._toolbox.claim(calls)):
            context, arguments = contextvars.copy_context(), (self._try_tools, self._toolbox, claimed)
            threading.Thread(target=context.run, args=arguments, name="famulus-tools", daemon=True).start()

    def _try_tools(self, toolbox: Toolbox, claimed: set[str]) -> None:
        try:
            self._run_tools(toolbox, claimed)
        except BaseException as failure:  # noqa: BLE001 (the reading thread raises it)
            with self._lock:
                self._failure = failure
                if self._call is not None:
                    self._call.cancel()  # wakes up the reader

    def _run_tools(self, toolbox: Toolbox, claimed: set[str]) -> None:
        # An old event may ask for what was answered long ago: a tool must not run again for it.
        run = self._look_up(self._policy)
        calls = [call for call in open_calls(run) if call.id in claimed]
        if not calls or self._left.is_set():
            return
        outputs = toolbox.answer_all_in_threads(calls, self._running)
        request = SubmitToolOutputsRequest(run_id=run.id, tool_outputs=outputs)
        try:
            send_blocking(self._runs.SubmitToolOutputs, request, policy=self._policy, pause=self._pause)
        except FamulusError as error:
            # The run has ended, or somebody else was faster: the stream tells.
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise

    def _stop_answering(self) -> None:
        self._left.set()
        for future in self._running:
            future.cancel()

    def _cancel_run(self) -> None:
        policy = dataclasses.replace(self._policy, give_up_after=CANCEL_WITHIN)
        run_id = self.view.run_id or self._look_up(policy, CANCEL_WITHIN).id
        request = CancelRunRequest(run_id=run_id)
        send_blocking(self._runs.CancelRun, request, policy=policy, timeout=CANCEL_WITHIN)


class Watchdog:
    """Cancels a call when a read of it takes longer than some seconds: gRPC has no time-out for a single read."""

    def __init__(self, call: EventCall, seconds: float) -> None:
        self.barked = False
        self._call = call
        self._seconds = seconds
        self._reading_since: float | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="famulus-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def next_response(self) -> StreamRunResponse | WatchRunResponse:
        """The next response of the call. Only while this waits does the time count."""
        self._reading_since = time.monotonic()
        try:
            return next(self._call)
        finally:
            self._reading_since = None

    def _watch(self) -> None:
        left = self._seconds
        while not self._stop.wait(left):
            since = self._reading_since
            left = self._seconds if since is None else since + self._seconds - time.monotonic()
            if left <= 0:
                self.barked = True
                self._call.cancel()
                return


def _drain(call: EventCall) -> None:
    """Lets the server end the call: cancelled, it would count as failed there."""
    timer = threading.Timer(LAST_WORD, call.cancel)
    timer.daemon = True
    timer.start()
    with suppress(StopIteration, grpc.RpcError):
        while True:
            next(call)
    timer.cancel()
