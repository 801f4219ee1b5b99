"""The tail of run events in Redis, for watchers elsewhere and for later.

Writing never makes anybody wait: one task takes all that has gathered and sends it in one pipeline. Where Redis is
away, events are lost here, and a watcher that needs them gets a Snapshot.
"""

import asyncio
import contextlib
from collections import deque
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
# What waits to be written, in events and bytes: more means that Redis is far too slow, and the oldest go.
_MAX_PENDING = 50_000
_MAX_PENDING_BYTES = 64 * 1024 * 1024
_CLOSE_SECONDS = 1.0
# A Redis that does not answer is asked this often, and is then left alone (contract 27).
_READ_FAILURES = 5
_LEFT_ALONE_SECONDS = 5.0
# Each is some milliseconds of work for this process: more at a time would take each other's work for Redis's silence.
_READS_AT_A_TIME = 4

_log = structlog.get_logger(__name__)


class StreamsUnavailable(Exception):
    """Redis is away, hangs, or refuses. The text is for the log."""


class Entry(NamedTuple):
    """Sequences and serialized events to append to a run's stream, which is then kept for so many seconds; None removes
    the stream."""

    run_id: str
    payloads: Sequence[tuple[int, bytes]] | None
    seconds: int

    def weigh(self) -> tuple[int, int]:
        """How many events, and how many bytes."""
        payloads = self.payloads or ()
        return len(payloads), sum(len(payload) for _, payload in payloads)


class RedisEventLog:
    """See `ports.EventLog`. Open and close it."""

    def __init__(self, *, url: str) -> None:
        self._url = url
        self._pending: deque[Entry] = deque()
        self._pending_events = self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._connecting: asyncio.Task[RedisStreams] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._reads = asyncio.Semaphore(_READS_AT_A_TIME)
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
        await asyncio.wait([self._connecting])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), _CLOSE_SECONDS)
        self._writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writing
        with contextlib.suppress(StreamsUnavailable):
            await (await self._connecting).close()

    async def flush(self) -> None:
        """Returns once everything published so far is written, or lost."""
        while self._pending or not self._idle.is_set():
            self._idle.clear()
            self._wake.set()
            await self._idle.wait()

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        # Serialized here, once: what waits is then as large as it is counted, and holds nobody's objects.
        payloads = [(event.sequence, event.SerializeToString()) for event in events]
        self._put(Entry(run_id, payloads, _ACTIVE_SECONDS))

    def finish(self, run_id: str) -> None:
        self._put(Entry(run_id, (), _ENDED_SECONDS))

    def drop(self, run_id: str) -> None:
        self._put(Entry(run_id, None, 0))

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        if self._connecting is None:
            return []
        async with self._reads:
            # Looked at only now: while this read waited, others may have found that Redis does not answer.
            if self._is_left_alone():
                return []
            try:
                streams = await asyncio.shield(self._connecting)
                events = await streams.read(run_id, after_sequence=after_sequence, limit=limit)
            except StreamsUnavailable as error:
                self._count_failure(error)
                return []
        self._read_failures = 0
        return events

    def _is_left_alone(self) -> bool:
        return asyncio.get_running_loop().time() < self._left_alone_until

    def _count_failure(self, error: StreamsUnavailable) -> None:
        self._read_failures += 1
        # Reads that were under way when the fifth failed say nothing new.
        if self._read_failures >= _READ_FAILURES and not self._is_left_alone():
            self._read_failures = 0
            self._left_alone_until = asyncio.get_running_loop().time() + _LEFT_ALONE_SECONDS
            _log.warning("event log unreachable, left alone", error=str(error))

    async def _connect(self) -> "RedisStreams":
        try:
            # The redis package takes as long to import as the rest of the server to start; nobody has to wait for it.
            module = await asyncio.to_thread(import_module, "famulus_server.coordination.streams")
            streams: RedisStreams = module.RedisStreams(url=self._url)
        except Exception as error:
            _log.exception("event log cannot be used")
            raise StreamsUnavailable(type(error).__name__) from error
        return streams

    def _put(self, entry: Entry) -> None:
        events, size = entry.weigh()
        self._pending.append(entry)
        self._pending_events += events
        self._pending_bytes += size
        if self._pending_events > _MAX_PENDING or self._pending_bytes > _MAX_PENDING_BYTES:
            self._drop_oldest()
        self._idle.clear()
        self._wake.set()

    def _drop_oldest(self) -> None:
        removals: list[Entry] = []
        while self._pending_events > _MAX_PENDING or self._pending_bytes > _MAX_PENDING_BYTES:
            oldest = self._pending.popleft()
            if oldest.payloads is None:
                # A deleted thread must leave nothing, however much there is to write.
                removals.append(oldest)
                continue
            events, size = oldest.weigh()
            self._pending_events -= events
            self._pending_bytes -= size
            self.lost += events
        self._pending.extendleft(reversed(removals))

    async def _write_loop(self, connecting: "asyncio.Task[RedisStreams]") -> None:
        while True:
            if not self._pending:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            # Until there is a connection, what comes gathers where it is bounded.
            await asyncio.wait([connecting])
            batch, self._pending = self._pending, deque()
            self._pending_events = self._pending_bytes = 0
            await self._write(connecting, batch)

    async def _write(self, connecting: "asyncio.Task[RedisStreams]", batch: Sequence[Entry]) -> None:
        """Raises nothing: the writer has to outlive whatever goes wrong with one batch."""
        try:
            streams = await connecting
            refused = await streams.write(batch)
        except StreamsUnavailable as error:
            self._lose(batch, error=str(error))
        except Exception as error:  # noqa: BLE001 - as said above; the log has it
            _log.exception("event log cannot write")
            self._lose(batch, error=type(error).__name__)
        else:
            if refused:
                self.lost += refused
                _log.warning("the event log refused entries", entries=refused)

    def _lose(self, batch: Sequence[Entry], *, error: str) -> None:
        lost = sum(len(entry.payloads or ()) for entry in batch)
        self.lost += lost
        _log.warning("events lost to the event log", events=lost, error=error)
