"""The tail of run events in Redis, for watchers elsewhere and for later.

Writing never makes anybody wait: one task takes all that has gathered and sends it in one pipeline. Where Redis is
away, events are lost here, and a watcher that needs them gets a Snapshot.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import structlog

from famulus.v1.run_event_pb2 import RunEvent

if TYPE_CHECKING:
    from famulus_server.coordination.streams import RedisStreams

# How long a run's stream is kept after the last write, and after the end of the run.
_ACTIVE_SECONDS = 24 * 3_600
_ENDED_SECONDS = 3_600
# Events that wait to be written: more means that Redis is far too slow, and the oldest go.
_MAX_PENDING = 50_000
_CLOSE_SECONDS = 1.0
# A Redis that does not answer is asked this often, and is then left alone (contract 27).
_READ_FAILURES = 5
_LEFT_ALONE_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class StreamsUnavailable(Exception):
    """Redis is away, hangs, or refuses. The text is for the log."""


class Entry(NamedTuple):
    """Events to append to a run's stream, which is then kept for so many seconds; None removes the stream."""

    run_id: str
    events: Sequence[RunEvent] | None
    seconds: int


class RedisEventLog:
    """See `ports.EventLog`. Open and close it."""

    def __init__(self, *, url: str) -> None:
        self._url = url
        self._pending: list[Entry] = []
        self._pending_events = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._connecting: asyncio.Task[RedisStreams] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._read_failures = 0
        self._left_alone_until = 0.0
        self.lost = 0

    def open(self) -> None:
        """Starts the writer. What is published before it has connected waits for it."""
        self._connecting = asyncio.create_task(self._connect(), name="event-log-connect")
        self._writing = asyncio.create_task(self._write_loop(self._connecting), name="event-log")

    async def close(self) -> None:
        """Writes what is left, as far as Redis lets it, and closes the connections."""
        if self._writing is None or self._connecting is None:
            return
        streams = await self._connecting
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), _CLOSE_SECONDS)
        self._writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writing
        await streams.close()

    async def flush(self) -> None:
        """Returns once everything published so far is written, or lost."""
        while self._pending or not self._idle.is_set():
            self._idle.clear()
            self._wake.set()
            await self._idle.wait()

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        self._put(run_id, events, _ACTIVE_SECONDS)

    def finish(self, run_id: str) -> None:
        self._put(run_id, (), _ENDED_SECONDS)

    def drop(self, run_id: str) -> None:
        self._put(run_id, None, 0)

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        now = asyncio.get_running_loop().time()
        if self._connecting is None or now < self._left_alone_until:
            return []
        streams = await asyncio.shield(self._connecting)
        try:
            events = await streams.read(run_id, after_sequence=after_sequence, limit=limit)
        except StreamsUnavailable as error:
            self._read_failures += 1
            if self._read_failures >= _READ_FAILURES:
                self._read_failures, self._left_alone_until = 0, now + _LEFT_ALONE_SECONDS
                _log.warning("event log unreachable, left alone", error=str(error))
            return []
        self._read_failures = 0
        return events

    async def _connect(self) -> "RedisStreams":
        # The redis package takes as long to import as the rest of the server to start; nobody has to wait for it.
        module = await asyncio.to_thread(import_module, "famulus_server.coordination.streams")
        streams: RedisStreams = module.RedisStreams(url=self._url)
        return streams

    def _put(self, run_id: str, events: Sequence[RunEvent] | None, seconds: int) -> None:
        self._pending.append(Entry(run_id, events, seconds))
        self._pending_events += len(events or ())
        while self._pending_events > _MAX_PENDING:
            oldest = self._pending.pop(0)
            self._pending_events -= len(oldest.events or ())
            self.lost += len(oldest.events or ())
        self._idle.clear()
        self._wake.set()

    async def _write_loop(self, connecting: "asyncio.Task[RedisStreams]") -> None:
        streams = await asyncio.shield(connecting)
        while True:
            if not self._pending:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            batch, self._pending, self._pending_events = self._pending, [], 0
            try:
                refused = await streams.write(batch)
            except StreamsUnavailable as error:
                lost = sum(len(entry.events or ()) for entry in batch)
                self.lost += lost
                _log.warning("events lost to the event log", events=lost, error=str(error))
            else:
                if refused:
                    self.lost += refused
                    _log.warning("the event log refused entries", entries=refused)
