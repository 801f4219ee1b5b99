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
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.engine.packing import fitting, fresh
from famulus_server.ports import EventBatch, EventLog

# Per run, kept in memory for watchers that are close behind; older events are in the EventLog.
_MAX_BYTES = 4 * 1024 * 1024
# What a batch takes in memory on top of its payload, roughly.
_BATCH_BYTES = 256
# Looked at for one response: more would not fit, unless they are tiny.
_MAX_BATCHES = 256
# How many logs that nobody uses stay in memory for late watchers, and how large they may be together.
_MAX_IDLE = 256
_MAX_IDLE_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Draft:
    """What a model turn has made so far and nobody has stored: for a Snapshot in the middle of a turn."""

    messages: list[Message] = field(default_factory=list)
    steps: list[RunStep] = field(default_factory=list)


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
        self._batches: list[EventBatch] = []
        self._waiting: set[asyncio.Future[None]] = set()

    def append(self, batches: Sequence[EventBatch]) -> None:
        """Adds new events and wakes the watchers. Where some are missing before them, what came earlier is
        forgotten."""
        for batch in batches:
            if batch.follows > self.last_sequence:
                self.forget(batch.first - 1)
            self._batches.append(batch)
            self.bytes += len(batch.payload) + _BATCH_BYTES
            self.last_sequence = batch.last
        if self.bytes > _MAX_BYTES:
            self._trim()
        self._wake()

    def forget(self, last_sequence: int) -> None:
        """Goes on behind a sequence, without what came before: watchers read that elsewhere, or get a Snapshot."""
        self.last_sequence = self._floor = last_sequence
        self.bytes = 0
        self._batches = []
        self._wake()

    def after(self, sequence: int, *, max_bytes: int) -> Sequence[EventBatch] | None:
        """What is behind a sequence, at most `max_bytes` but for the first batch; None if some of it is gone."""
        if sequence < self._floor:
            return None
        start = bisect_right(self._batches, sequence, key=_last)
        return fresh(fitting(self._batches[start : start + _MAX_BATCHES], max_bytes), sequence)

    def reaches(self, sequence: int) -> bool:
        """Whether all that follows a sequence, as far as it is known, is in memory."""
        return sequence >= self._floor

    def all(self) -> Sequence[EventBatch]:
        """All events that are in memory."""
        return self._batches

    async def wait(self) -> None:
        """Returns at the next change. Call it without awaiting anything after having looked."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        try:
            await change
        finally:
            self._waiting.discard(change)

    def end(self, *, deleted: bool = False) -> None:
        """No event will follow."""
        self.ended = True
        self.deleted = deleted
        self.draft = Draft
        self._wake()

    def _wake(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)

    def _trim(self) -> None:
        # Down to half, so that trimming is rare and its cost per event constant.
        count = 0
        while self.bytes > _MAX_BYTES // 2 and count < len(self._batches) - 1:
            self.bytes -= len(self._batches[count].payload) + _BATCH_BYTES
            count += 1
        if count:
            self._floor = self._batches[count - 1].last
            del self._batches[:count]


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

    def publish(self, run_id: str, batches: Sequence[EventBatch]) -> None:
        """Shows events to watchers here, and sends them to the EventLog for those elsewhere."""
        if not batches:
            return
        log = self.open(run_id, batches[0].first - 1)
        if log.ended:
            return
        self._show(run_id, log, batches)
        log.ours = True
        self._event_log.publish(run_id, batches)

    def copy(self, run_id: str, log: RunLog, batches: Sequence[EventBatch]) -> None:
        """Shows what is new of events that came from the EventLog to watchers here. It may have lost what comes before
        them, but has no hole: the log then goes on without that."""
        if not log.ended and batches[-1].last > log.last_sequence:
            self._show(run_id, log, batches)
            log.ours = False

    def memory(self) -> Iterable[tuple[str, Sequence[EventBatch]]]:
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

    def _show(self, run_id: str, log: RunLog, batches: Sequence[EventBatch]) -> None:
        # What is here already was read from the store, or from the EventLog, before it was told.
        log.append(fresh(batches, log.last_sequence))
        if batches[-1].ends:
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


def _last(batch: EventBatch) -> int:
    return batch.last
