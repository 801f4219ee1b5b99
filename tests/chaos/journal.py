"""What the users of a trial saw and were told, and what was found to be wrong."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunState


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken; `about` is the id of a run or thread, or a request id."""

    rule: str
    about: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.rule} [{self.about}] {self.evidence}"


@dataclass(slots=True, eq=False)
class KnownRun:
    """A run that was acknowledged to a user."""

    id: str
    thread_id: str
    request_id: str
    kind: str
    said: str
    outputs: dict[str, str] = field(default_factory=dict)
    # Whether anybody asked it to stop, or may have taken its place.
    may_stop: bool = False
    told_states: "list[RunState.ValueType]" = field(default_factory=list)  # by CancelRun
    rated: bool = False


@dataclass(slots=True, eq=False)
class KnownThread:
    """A thread that was acknowledged. Times are in seconds since 1970."""

    id: str
    messages: dict[str, str] = field(default_factory=dict)  # acknowledged ones by id
    asked_to_delete: float | None = None
    deleted: float | None = None
    forked: bool = False
    disturbed: bool = False  # somebody brought a run that takes the place of others


@dataclass(slots=True, eq=False)
class Viewing:
    """What one watcher saw of a run, over all its streams; `joins` are (events seen before, replica) of each stream."""

    run_id: str = ""
    events: list[RunEvent] = field(default_factory=list)
    joins: list[tuple[int, int]] = field(default_factory=list)
    ended: bool = False
    gone: bool = False  # the thread was deleted

    @property
    def cursor(self) -> int:
        """Sequence of the last event seen."""
        return self.events[-1].sequence if self.events else 0


class Journal:
    """Everything that the verdict is about."""

    def __init__(self) -> None:
        self.runs: dict[str, KnownRun] = {}
        self.threads: dict[str, KnownThread] = {}
        self.viewings: list[Viewing] = []
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self.resume_seconds: list[float] = []
        # By how the owner was lost.
        self.takeover_seconds: dict[str, list[float]] = {}
        # How and when processes were lost, by their ids, in seconds since 1970.
        self.lost: dict[int, tuple[str, float]] = {}
        # (begin, end, what) of each fault; the end is infinite while it lasts.
        self.faults: list[tuple[float, float, str]] = []

    def violate(self, rule: str, about: str, evidence: str) -> None:
        """Notes a broken promise, each rule once about the same thing."""
        if not any((known.rule, known.about) == (rule, about) for known in self.violations):
            self.violations.append(Violation(rule, about, evidence))

    def thread(self, thread_id: str) -> KnownThread:
        """The thread of this id, known from now on."""
        return self.threads.setdefault(thread_id, KnownThread(thread_id))

    def faulty_between(self, begin: float, end: float, words: Sequence[str]) -> bool:
        """Whether a fault whose name holds one of the words overlapped a time."""
        return any(
            start <= end and begin <= stop and any(word in what for word in words) for start, stop, what in self.faults
        )

    def begin_fault(self, what: str, where: str = "") -> int:
        """Notes a fault that begins now; returns its number, for `end_fault`."""
        self.counts[what] += 1
        self.faults.append((time.time(), float("inf"), f"{what} {where}"))
        return len(self.faults) - 1

    def end_fault(self, number: int) -> None:
        """Notes that everything is as before."""
        begin, _, what = self.faults[number]
        self.faults[number] = (begin, time.time(), what)


def place(replica: int) -> str:
    """How a fault of one replica is marked."""
    return f"@{replica}"
