"""The events of runs in this process: one log per run, read by any number of watchers.

A watcher holds nothing but a cursor, so a slow one costs nothing and cannot slow anybody (contract 14): when what it
wants has been trimmed here, it reads from the EventLog, or gets a Snapshot.

The log of a run that this process executes is the source of its events. The log of any other run is a copy of what the
EventLog has, brought up to date by the Follower while somebody watches.
"""

import asyncio
import contextlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.engine import lifecycle
from famulus_server.ports import EventLog

# Per run, kept in memory for watchers that are close behind; older events are in the EventLog.
_MAX_BYTES = 4 * 1024 * 1024
# What an event takes in memory on top of its serialized size, roughly.
_EVENT_BYTES = 1024
# How many logs that nobody uses stay in memory for late watchers, and how large they may be together.
_MAX_IDLE = 256
_MAX_IDLE_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Draft:
    """What a model turn has made so far and nobody has stored: for a Snapshot in the middle of a turn."""

    messages: list[Message] = field(default_factory=list)
    steps: list[RunStep] = field(default_factory=list)


def continues(event: RunEvent, last_sequence: int) -> bool:
    """Whether an event may come right behind a sequence: it is the next one, or starts an attempt that takes back all
    that it jumps over, the one jump that a log may have."""
    if event.sequence == last_sequence + 1:
        return True
    return event.HasField("attempt_started") and event.attempt_started.discards_after_sequence <= last_sequence


class RunLog:
    """The newest events of one run, in order of sequence. `bytes` is what they take in memory, roughly."""

    def __init__(self, *, last_sequence: int) -> None:
        self.last_sequence = last_sequence
        self.stored_sequence = last_sequence
        self.owned = False
        """Whether this process executes the run."""
        self.users = 0
        """How many watch the run here, or execute it."""
        self.ours = False
        """Whether this process made the newest events."""
        self.ended = False
        self.deleted = False
        self.bytes = 0
        self.draft: Callable[[], Draft] = Draft
        self._floor = last_sequence
        self._events: list[RunEvent] = []
        self._sequences: list[int] = []
        self._sizes: list[int] = []
        self._changed: asyncio.Future[None] | None = None

    def append(self, events: Sequence[RunEvent]) -> None:
        """Adds events and wakes the watchers. Where some are missing before them, what came earlier is forgotten."""
        if not continues(events[0], self.last_sequence):
            self.forget(events[0].sequence - 1)
        for event in events:
            size = event.ByteSize()
            self._events.append(event)
            self._sequences.append(event.sequence)
            self._sizes.append(size)
            self.bytes += size + _EVENT_BYTES
        self.last_sequence = events[-1].sequence
        if self.bytes > _MAX_BYTES:
            self._trim()
        self._wake()

    def forget(self, last_sequence: int) -> None:
        """Goes on behind a sequence, without what came before: watchers read that elsewhere, or get a Snapshot."""
        self.last_sequence = self._floor = last_sequence
        self.bytes = 0
        self._events, self._sequences, self._sizes = [], [], []
        self._wake()

    def after(self, sequence: int, *, limit: int, max_bytes: int) -> Sequence[RunEvent] | None:
        """At most `limit` events (and, but for the first, `max_bytes`) behind a sequence; None if some are gone."""
        if sequence < self._floor:
            return None
        start = bisect_right(self._sequences, sequence)
        end = min(start + limit, len(self._events))
        total = 0
        for index in range(start, end):
            total += self._sizes[index]
            if total > max_bytes:
                end = max(index, start + 1)
                break
        return self._events[start:end]

    def reaches(self, sequence: int) -> bool:
        """Whether all that follows a sequence, as far as it is known, is in memory."""
        return sequence >= self._floor

    def all(self) -> Sequence[RunEvent]:
        """All events that are in memory."""
        return self._events

    async def wait(self) -> None:
        """Returns at the next change. Call it without awaiting anything after having looked."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        # Shielded: the future is shared, and one watcher that goes away must not cancel it for the others.
        await asyncio.shield(self._changed)

    def end(self, *, deleted: bool = False) -> None:
        """No event will follow."""
        self.ended = True
        self.deleted = deleted
        self.draft = Draft
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _trim(self) -> None:
        # Down to half, so that trimming is rare and its cost per event constant.
        count = 0
        while self.bytes > _MAX_BYTES // 2 and count < len(self._events) - 1:
            self.bytes -= self._sizes[count] + _EVENT_BYTES
            count += 1
        self._floor = self._sequences[count - 1]
        del self._events[:count], self._sequences[:count], self._sizes[:count]


class Feed:
    """The logs of all runs that are executed or watched in this process, and of some that were."""

    def __init__(self, *, event_log: EventLog) -> None:
        self._event_log = event_log
        self._logs: dict[str, RunLog] = {}
        # Those that nobody uses, the one left longest ago first, with what each takes in memory.
        self._idle: OrderedDict[str, int] = OrderedDict()
        self._idle_bytes = 0
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def order(self, run_id: str) -> asyncio.Lock:
        """Held around "commit, then publish", so that facts of different writers come out as they were committed."""
        lock = self._orders.get(run_id)
        if lock is None:
            lock = self._orders[run_id] = asyncio.Lock()
        return lock

    def find(self, run_id: str) -> RunLog | None:
        """The log of a run, if it is here."""
        return self._logs.get(run_id)

    def open(self, run_id: str, last_sequence: int) -> RunLog:
        """The log of a run; a new one starts behind `last_sequence`."""
        log = self._logs.get(run_id)
        if log is None:
            log = self._logs[run_id] = RunLog(last_sequence=last_sequence)
            self._rest(run_id, log)
        return log

    @contextlib.contextmanager
    def using(self, run: Run) -> Iterator[RunLog]:
        """The log of a run, kept for as long as this is entered. One that nobody used, and that is behind what is
        stored, missed something elsewhere and starts anew."""
        log = self._logs.get(run.id)
        if log is not None and not log.users and log.last_sequence < run.last_sequence:
            self._remove(run.id)
        log = self.open(run.id, run.last_sequence)
        self._hold(run.id, log)
        try:
            yield log
        finally:
            self._leave(run.id, log)

    def own(self, run_id: str) -> None:
        """This process executes the run from now on, until `disown`."""
        log = self._logs.get(run_id)
        if log is not None and not log.owned:
            log.owned = True
            self._hold(run_id, log)

    def disown(self, run_id: str) -> None:
        """This process no longer executes the run."""
        log = self._logs.get(run_id)
        if log is not None and log.owned:
            log.owned = False
            log.draft = Draft
            self._leave(run_id, log)

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Shows numbered events to watchers here, and sends them to the EventLog for those elsewhere."""
        if not events:
            return
        log = self.open(run_id, events[0].sequence - 1)
        if log.ended:
            return
        self._show(run_id, log, events)
        log.ours = True
        self._event_log.publish(run_id, events)
        if is_last(events[-1]):
            self._event_log.finish(run_id)

    def copy(self, run_id: str, log: RunLog, events: Sequence[RunEvent]) -> None:
        """Shows what is new of events that came from the EventLog to watchers here. It may have lost what comes before
        them, but has no hole: the log then goes on without that."""
        if not log.ended and events[-1].sequence > log.last_sequence:
            self._show(run_id, log, events)
            log.ours = False

    def memory(self) -> Iterable[tuple[str, Sequence[RunEvent]]]:
        """The runs of which this process made the newest events, each with those in memory: what the EventLog may have
        lost."""
        for run_id, log in list(self._logs.items()):
            if log.ours:
                yield run_id, log.all()

    def drop(self, run_id: str) -> None:
        """The run's thread was deleted: nothing of it stays, and its watchers are told."""
        log = self._remove(run_id)
        if log is not None:
            log.end(deleted=True)
        self._event_log.drop(run_id)

    def _show(self, run_id: str, log: RunLog, events: Sequence[RunEvent]) -> None:
        # What is here already was read from the store, or from the EventLog, before it was told.
        fresh = [event for event in events if event.sequence > log.last_sequence]
        if fresh:
            log.append(fresh)
        if is_last(events[-1]):
            log.end()
        if not log.users:
            self._rest(run_id, log)

    def _hold(self, run_id: str, log: RunLog) -> None:
        log.users += 1
        self._idle_bytes -= self._idle.pop(run_id, 0)

    def _leave(self, run_id: str, log: RunLog) -> None:
        log.users -= 1
        if not log.users and self._logs.get(run_id) is log:
            self._rest(run_id, log)

    def _rest(self, run_id: str, log: RunLog) -> None:
        self._idle_bytes += log.bytes - self._idle.pop(run_id, 0)
        self._idle[run_id] = log.bytes
        while len(self._idle) > _MAX_IDLE or self._idle_bytes > _MAX_IDLE_BYTES:
            self._remove(next(iter(self._idle)))

    def _remove(self, run_id: str) -> RunLog | None:
        self._idle_bytes -= self._idle.pop(run_id, 0)
        return self._logs.pop(run_id, None)


def is_last(event: RunEvent) -> bool:
    """Whether nothing follows an event: the run has ended."""
    return event.HasField("run_state_changed") and event.run_state_changed.run.state in lifecycle.FINAL
