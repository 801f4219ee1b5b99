"""What the store is asked by, and what it answers besides messages of `famulus.v1`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.usage_service_pb2 import UsageBucket, UsageDimension
from famulus_server.ports.thread_cache import Remembered


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A caller's request id (contract 5): counts per tenant and method; `fingerprint` is a hash of the request."""

    method: str
    request_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of a list ended: the ordering number of its last item, and its id to break ties."""

    number: int
    id: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Who executes a run, and for how many seconds unless renewed."""

    owner: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadFilter:
    """Which threads a list shows; empty fields do not filter. Times are inclusive below, exclusive above."""

    user_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    active_after: datetime | None = None
    active_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list shows; empty fields do not filter."""

    thread_id: str = ""
    assistant_id: str = ""
    states: Sequence["RunState.ValueType"] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which runs usage is summed up of, and in which groups; empty fields do not filter. Times are those of creation,
    inclusive below, exclusive above."""

    start: datetime
    end: datetime
    group_by: Collection["UsageDimension.ValueType"] = ()
    bucket: "UsageBucket.ValueType" = UsageBucket.USAGE_BUCKET_UNSPECIFIED
    user_id: str = ""
    assistant_id: str = ""
    model: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup:
    """What the runs of one group have in common. `span_start` is in microseconds since 1970. Whatever they are not
    grouped by is empty, or 0."""

    span_start: int = 0
    user_id: str = ""
    assistant_id: str = ""
    model: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose spending is counted, and from when on: a user's, or that of the whole tenant where `user_id` is empty."""

    user_id: str
    period_start: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A committed model turn: what the next turn of the same run must send back to the model.

    `items` are in the item format of the Responses API, tool outputs included once they came in.
    `seen_sequence` is the sequence of the newest message of the thread that the turn's input held.
    """

    number: int
    seen_sequence: int
    items: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that this worker now owns. `taken_over` says that a lease of somebody else had run out; `thread` is what
    is in its thread, where that was made together with it."""

    tenant: str
    run: Run
    taken_over: bool
    thread: Remembered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What there is for a worker to do, each number counted up to a limit: runs whose lease has run out, parked runs
    whose time has come, and how many runs of which tenants wait, in the order of their turns."""

    abandoned: int
    parked: int
    waiting: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.abandoned or self.parked or self.waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many runs wait for a worker, of all tenants and counted up to a limit, and for how long the oldest of those
    has waited that no worker has begun."""

    runs: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How the runs of a tenant wait. `queued` are all that are QUEUED, `ahead` those that workers take before another
    one, both counted up to a limit. `starts` runs were started within the last `seconds`."""

    queued: int
    ahead: int
    starts: int
    seconds: float
