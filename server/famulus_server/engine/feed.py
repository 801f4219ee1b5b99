"""The events of runs in this process: one log per run, read by any number of watchers.

A watcher holds nothing but a cursor, so a slow one costs nothing and cannot slow anybody (contract 14): when what it
wants has been trimmed here, it reads from the EventLog, or gets a Snapshot.
"""

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_step_pb2 import RunStep
from famulus_server.engine import lifecycle
from famulus_server.ports import EventLog

# Per run, kept in memory for watchers that are close behind; older events are in the EventLog.
_MAX_BYTES = 4 * 1024 * 1024
# What an event takes in memory on top of its serialized size, roughly.
_EVENT_BYTES = 1024
# How many logs of runs that have ended stay in memory for late watchers, and how large they may be together.
_MAX_ENDED = 256
_MAX_ENDED_BYTES = 64 * 1024 * 1024


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
        """Adds events, which must continue the log, and wakes the watchers."""
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
    """The logs of all runs that are active in this process, and of some that have ended."""

    def __init__(self, *, event_log: EventLog) -> None:
        self._event_log = event_log
        self._active: dict[str, RunLog] = {}
        self._ended: OrderedDict[str, RunLog] = OrderedDict()
        self._ended_bytes = 0
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def order(self, run_id: str) -> asyncio.Lock:
        """Held around "commit, then publish", so that facts of different writers come out as they were committed."""
        lock = self._orders.get(run_id)
        if lock is None:
            lock = self._orders[run_id] = asyncio.Lock()
        return lock

    def find(self, run_id: str) -> RunLog | None:
        """The log of a run, if it is here."""
        return self._active.get(run_id) or self._ended.get(run_id)

    def open(self, run_id: str, last_sequence: int) -> RunLog:
        """The log of an active run; a new one starts behind `last_sequence`."""
        log = self.find(run_id)
        if log is None:
            log = self._active[run_id] = RunLog(last_sequence=last_sequence)
        return log

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Shows numbered events to watchers here, and sends them to the EventLog for those elsewhere."""
        if not events:
            return
        log = self.open(run_id, events[0].sequence - 1)
        if log.ended:
            return
        log.append(events)
        self._event_log.publish(run_id, events)
        last = events[-1]
        if last.HasField("run_state_changed") and last.run_state_changed.run.state in lifecycle.FINAL:
            self._event_log.finish(run_id)
            self._close(run_id, log)

    def drop(self, run_id: str) -> None:
        """The run's thread was deleted: nothing of it stays, and its watchers are told."""
        log = self.find(run_id)
        if log is not None:
            self._active.pop(run_id, None)
            if self._ended.pop(run_id, None) is not None:
                self._ended_bytes -= log.bytes
            log.end(deleted=True)
        self._event_log.drop(run_id)

    def _close(self, run_id: str, log: RunLog) -> None:
        log.end()
        self._active.pop(run_id, None)
        self._ended[run_id] = log
        self._ended_bytes += log.bytes
        while len(self._ended) > _MAX_ENDED or self._ended_bytes > _MAX_ENDED_BYTES:
            _, oldest = self._ended.popitem(last=False)
            self._ended_bytes -= oldest.bytes
