"""A small RunService on a real port, which tells a log kept in memory and breaks its streams as planned."""
# ruff: noqa: N802 (gRPC methods carry their proto names)

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Never

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from clients.python.story import REQUIRES_ACTION, RUN_ID
from famulus.v1 import run_service_pb2 as api
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server
from famulus.view import FINAL_STATES

PATIENCE = 10.0  # seconds until a test that waits for an event fails
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

Serving = Callable[["Stream"], Iterator[Sequence[RunEvent]]]
JoinRequest = api.StreamRunRequest | api.WatchRunRequest


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str = "as planned",
    *,
    reason: str = "",
    retry_after: float | None = None,
    field: str = "",
    metadata: dict[str, str] | None = None,
) -> Never:
    """Ends a call with an error and its details, in the service's manner."""
    details = []
    if reason:
        details.append(ErrorInfo(reason=reason, domain="famulus", metadata=metadata or {}))
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_after * 1e9))
        details.append(RetryInfo(retry_delay=delay))
    if field:
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=field, description="is wrong")]))
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort raises")


@dataclass
class Stream:
    """One stream that is served."""

    runs: "ScriptedRuns"
    request: JoinRequest
    context: grpc.ServicerContext
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def after(self) -> int:
        return self.request.after_sequence

    def events(self) -> Iterator[RunEvent]:
        """What follows the sequence that the client named, as it is published, to the end of the run."""
        for event in self.runs.published(self.context):
            if event.sequence > self.after:
                yield event


def whole(stream: Stream) -> Iterator[Sequence[RunEvent]]:
    return ([event] for event in stream.events())


def in_one_batch(stream: Stream) -> Iterator[Sequence[RunEvent]]:
    yield list(stream.events())


def cut_after(
    count: int,
    code: grpc.StatusCode = UNAVAILABLE,
    message: str = "cut",
    reason: str = "",
    retry_after: float | None = None,
) -> Serving:
    def serve(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        for event in islice(stream.events(), count):
            yield [event]
        refuse(stream.context, code, message, reason=reason, retry_after=retry_after)

    return serve


def ends_after(count: int) -> Serving:
    """Ends OK too early."""
    return lambda stream: ([event] for event in islice(stream.events(), count))


def silent_after(count: int) -> Serving:
    def serve(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        for event in islice(stream.events(), count):
            yield [event]
        stream.closed.wait(PATIENCE)

    return serve


def heartbeats(count: int, apart: float) -> Serving:
    """Heartbeats before the events; `apart` is in seconds."""

    def serve(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        for _ in range(count):
            stream.closed.wait(apart)
            yield []
        yield from whole(stream)

    return serve


def tells(*events: RunEvent) -> Serving:
    """Tells these events, whatever the client asked for, and goes on after the last of them."""

    def serve(stream: Stream) -> Iterator[Sequence[RunEvent]]:
        for event in events:
            yield [event]
        yield from ([event] for event in stream.events() if event.sequence > events[-1].sequence)

    return serve


def without(sequence: int) -> Serving:
    """Leaves an event out."""
    return lambda stream: ([event] for event in stream.events() if event.sequence != sequence)


def repeats_all(stream: Stream) -> Iterator[Sequence[RunEvent]]:
    """Starts at the first event, whatever the client has seen, and tells each twice."""
    return ([event, event] for event in stream.runs.published(stream.context))


class ScriptedRuns(RunServiceServicer):
    """Serves each stream by the next entry of the plan; wholly, when the plan is used up.

    The log is published up to the first event at which the run waits for tool outputs; submitting publishes the rest.
    """

    def __init__(self, log: Iterable[RunEvent], plan: Iterable[Serving] = ()) -> None:
        self.log = list(log)
        self.plan = deque(plan)
        self.streams: list[Stream] = []
        self.shown: list[str] = []  # by each call, of its credentials
        self.created: list[api.CreateRunRequest] = []
        self.lookups = 0
        self.submitted: list[api.SubmitToolOutputsRequest] = []
        self.cancelled: list[str] = []
        self.refusals: deque[Callable[[grpc.ServicerContext], None]] = deque()  # of the next unary calls
        self._changed = threading.Condition()
        self._visible = self._pause_after(0)

    def _pause_after(self, index: int) -> int:
        for position, event in enumerate(self.log[index:], index + 1):
            if event.run_state_changed.run.state == REQUIRES_ACTION:
                return position
        return len(self.log)

    def published(self, context: grpc.ServicerContext) -> Iterator[RunEvent]:
        position = 0
        while context.is_active():
            with self._changed:
                if position == self._visible:
                    self._changed.wait(0.05)  # then look whether the client is still there
                fresh = self.log[position : self._visible]
            position += len(fresh)
            yield from fresh
            if position == len(self.log):
                return

    def publish(self) -> None:
        """Publishes up to the next pause."""
        with self._changed:
            self._visible = self._pause_after(self._visible)
            self._changed.notify_all()

    @property
    def run(self) -> Run:
        """The run as it is now."""
        changes = [event for event in self.log[: self._visible] if event.HasField("run_state_changed")]
        return changes[-1].run_state_changed.run if changes else Run(id=RUN_ID)

    def _serve(self, request: JoinRequest, context: grpc.ServicerContext) -> Iterator[Sequence[RunEvent]]:
        stream = Stream(self, request, context)
        self.streams.append(stream)
        self._note(context)
        context.add_callback(stream.closed.set)
        return (self.plan.popleft() if self.plan else whole)(stream)

    def _note(self, context: grpc.ServicerContext) -> None:
        self.shown += [str(value) for key, value in context.invocation_metadata() if key == "authorization"]

    def _maybe_refuse(self, context: grpc.ServicerContext) -> None:
        if self.refusals:
            self.refusals.popleft()(context)

    def StreamRun(
        self, request: api.StreamRunRequest, context: grpc.ServicerContext
    ) -> Iterator[api.StreamRunResponse]:
        return (api.StreamRunResponse(events=batch) for batch in self._serve(request, context))

    def WatchRun(self, request: api.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[api.WatchRunResponse]:
        return (api.WatchRunResponse(events=batch) for batch in self._serve(request, context))

    def CreateRun(self, request: api.CreateRunRequest, context: grpc.ServicerContext) -> api.CreateRunResponse:
        self._maybe_refuse(context)
        self.created.append(request)
        return api.CreateRunResponse(run=self.run)

    def GetRun(self, request: api.GetRunRequest, context: grpc.ServicerContext) -> api.GetRunResponse:
        self._note(context)
        self.lookups += 1
        return api.GetRunResponse(run=self.run)

    def WaitRun(self, request: api.WaitRunRequest, context: grpc.ServicerContext) -> api.WaitRunResponse:
        self._maybe_refuse(context)
        stops = {*FINAL_STATES, REQUIRES_ACTION}
        with self._changed:
            while self.run.state not in stops and context.is_active():
                self._changed.wait(0.05)
        messages = [event.message_completed.message for event in self.log if event.HasField("message_completed")]
        return api.WaitRunResponse(run=self.run, messages=messages)

    def SubmitToolOutputs(
        self, request: api.SubmitToolOutputsRequest, context: grpc.ServicerContext
    ) -> api.SubmitToolOutputsResponse:
        self._maybe_refuse(context)
        self.submitted.append(request)
        self.publish()
        return api.SubmitToolOutputsResponse(run=self.run)

    def CancelRun(self, request: api.CancelRunRequest, context: grpc.ServicerContext) -> api.CancelRunResponse:
        self.cancelled.append(request.run_id)
        return api.CancelRunResponse(run=self.run)

    def _unused(self, request: object, context: grpc.ServicerContext) -> Never:
        raise AssertionError("no client of these tests calls this")

    ListRuns = UpdateRun = ListRunSteps = GetRunStep = RateRun = _unused


@contextmanager
def serving(runs: ScriptedRuns, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serves on a port of its own; gives the address."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    add_RunServiceServicer_to_server(runs, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
