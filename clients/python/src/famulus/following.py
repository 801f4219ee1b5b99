"""What both clients share of following a run: place in the log, view, and what to do when a stream breaks. No I/O."""

import uuid
from collections.abc import Sequence

import grpc

from famulus.errors import FamulusError, GapError
from famulus.retry import Outage, RetryPolicy
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_service_pb2 import CreateRunRequest, GetRunRequest, StreamRunRequest, WatchRunRequest
from famulus.v1.tool_pb2 import ToolCall
from famulus.view import FINAL_STATES, RunView

MOST_GAPS = 3  # in a row, at the same place


class Following:
    """One run, followed over any number of streams.

    Either `create` starts the run, or `run_id` names it. `after_sequence` is the last event seen before.
    """

    def __init__(
        self,
        *,
        create: CreateRunRequest | None = None,
        run_id: str = "",
        after_sequence: int = 0,
        policy: RetryPolicy,
    ) -> None:
        self.view = RunView()
        self.view.run_id = run_id
        self.last_sequence = after_sequence
        self.finished = False
        self._create = CreateRunRequest() if create is None else repeatable(create)
        self._outage = Outage(policy)
        self._gaps = 0
        self._asked = False

    def joining(self) -> StreamRunRequest | WatchRunRequest:
        """The request that goes on after the last event seen."""
        self._asked = True
        # By its id as soon as that is known: a request id is forgotten after a day, and would start another run.
        if self.view.run_id:
            return WatchRunRequest(run_id=self.view.run_id, after_sequence=self.last_sequence)
        return StreamRunRequest(create=self._create, after_sequence=self.last_sequence)

    def looking_up(self) -> GetRunRequest | CreateRunRequest:
        """The request that answers with the run as it is now. CreateRun shares its request ids with StreamRun."""
        return GetRunRequest(run_id=self.view.run_id) if self.view.run_id else self._create

    @property
    def may_go_on(self) -> bool:
        """Whether there may be a run that goes on without us: it was asked for, and neither refused nor seen to end."""
        return self._asked and not self.finished

    def take(self, event: RunEvent) -> bool:
        """Takes in an event of a stream; False where it was seen before. Raises GapError where events are missing."""
        if event.sequence <= self.last_sequence:
            return False
        jumps = event.WhichOneof("event") in {"attempt_started", "snapshot"}
        if event.sequence != self.last_sequence + 1 and not jumps:
            raise GapError(after=self.last_sequence, received=event.sequence)
        self.last_sequence = event.sequence
        self.view.apply(event)
        self.finished = self.view.finished
        self._gaps = 0
        self._outage.over()
        return True

    def heard(self) -> None:
        """A heartbeat came."""
        self._outage.over()

    def lost(self, error: FamulusError) -> float:
        """The stream broke: seconds to wait before joining again. Raises the error where that is of no use."""
        self._gaps = self._gaps + 1 if isinstance(error, GapError) else self._gaps
        if self._gaps >= MOST_GAPS:
            raise error
        if not (error.transient or self.view.run_id):
            self._asked = False
        return self._outage.delay(error)

    def ended(self, run: Run) -> None:
        """The stream ended OK without a last event. Raises where the run, as it is now, has more to say."""
        if run.state not in FINAL_STATES or run.last_sequence > self.last_sequence:
            raise FamulusError("the stream ended before the run did", code=grpc.StatusCode.UNAVAILABLE)
        self.view.adopt(run)
        self.finished = True


def repeatable(create: CreateRunRequest) -> CreateRunRequest:
    """The request, with a request id: without one, each attempt would start another run."""
    copy = CreateRunRequest()
    copy.CopyFrom(create)
    copy.request_id = create.request_id or str(uuid.uuid4())
    return copy


def silence(seconds: float) -> FamulusError:
    """The error for a stream on which nothing came, not even a heartbeat."""
    return FamulusError(f"nothing came for {seconds:g} seconds", code=grpc.StatusCode.UNAVAILABLE)


def open_calls(run: Run) -> Sequence[ToolCall]:
    """The function calls that a run waits for."""
    if run.state != RunState.RUN_STATE_REQUIRES_ACTION:
        return ()
    return [call for call in run.required_action.tool_calls if _is_open(call)]


def requested_calls(event: RunEvent) -> Sequence[ToolCall]:
    """The function calls that an event says the run waits, or waited, for."""
    match event.WhichOneof("event"):
        case "tool_calls_requested":
            return [call for call in event.tool_calls_requested.tool_calls if _is_open(call)]
        case "run_state_changed":
            return open_calls(event.run_state_changed.run)
        case "snapshot":
            return open_calls(event.snapshot.run)
    return ()


def _is_open(call: ToolCall) -> bool:
    function = call.function
    return call.HasField("function") and not function.HasField("output") and not function.problem
