"""The tail of run events in Redis, for watchers elsewhere and for later.

Writing never makes anybody wait: one task takes what has gathered and sends it in one pipeline. While Redis is away,
what was published gathers, within bounds. Each time the writer has connected, Redis may have forgotten anything: then
what it lacks is written again from memory, each run's before its newer events, so that a stream has no hole.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from famulus_server.coordination.backlog import Backlog, Entry, entries_of
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.loading import load
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.replay import Replay
from famulus_server.coordination.writer import Writer
from famulus_server.ports import EventBatch, Sealer

if TYPE_CHECKING:
    from famulus_server.coordination.streams import RedisStreams

# How long a run's stream is kept after the last write, and after the end of the run.
_ACTIVE_SECONDS = 24 * 3_600
_ENDED_SECONDS = 3_600
# Each is some milliseconds of work for this process: more at a time would take each other's work for Redis's silence.
_READS_AT_A_TIME = 4
# From one write to the next: of many runs with a delta now and then, many deltas go together.
_GATHERING_SECONDS = 0.01
# How long events wait for what another replica is about to write before them.
_OVERTAKING_SECONDS = 0.25

_log = structlog.get_logger(__name__)

Memory = Callable[[], Iterable[tuple[str, Sequence[EventBatch]]]]


class RedisEventLog:
    """See `ports.EventLog`. Open and close it; `patience` is that of this process's callers with Redis, `sealer`
    encrypts the events."""

    def __init__(self, *, url: str, patience: Patience, sealer: Sealer | None = None) -> None:
        self._url = url
        self._patience = patience
        self._sealer = sealer
        self._backlog = Backlog()
        self._replay = Replay(active_seconds=_ACTIVE_SECONDS, ended_seconds=_ENDED_SECONDS)
        self._memory: Memory = tuple
        self._writer: Writer[RedisStreams] = Writer(
            name="event log",
            connect=self._connect,
            is_due=lambda: bool(self._backlog or self._replay),
            write=self._write,
            pause=_GATHERING_SECONDS,
        )
        self._reads = asyncio.Semaphore(_READS_AT_A_TIME)
        # Counted since this was made: events and bytes of events that were written.
        self.appended = 0
        self.bytes = 0
        self._refused = 0
        self._refusal_told = False
        # Runs of which something waits for what comes before, each with the time at which it waits no longer.
        self._waiting: dict[str, float] = {}

    @property
    def lost(self) -> int:
        """How many events were refused, or dropped for lack of room; these may have been written from memory later."""
        return self._backlog.lost + self._refused

    @property
    def backlog(self) -> int:
        """How many events wait to be written."""
        return self._backlog.events

    def open(self, *, replay: Memory = tuple) -> None:
        """Starts the writer. What is published before it has connected waits for it.

        `replay` gives the events that this process has in memory, by run, all that was published lately among them.
        """
        self._memory = replay
        self._writer.open()

    async def close(self) -> None:
        """Writes what is left, as far as Redis lets it, and closes the connections."""
        await self._writer.close()

    async def flush(self) -> None:
        """Returns once everything published so far is written, or could not be."""
        await self._writer.flush()

    def publish(self, run_id: str, batches: Sequence[EventBatch]) -> None:
        seconds = _ENDED_SECONDS if batches[-1].ends else _ACTIVE_SECONDS
        for entry in entries_of(run_id, batches, seconds=seconds):
            self._put(entry)

    def drop(self, run_id: str) -> None:
        self._replay.forget(run_id)
        self._put(Entry(run_id, None, _ENDED_SECONDS))

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        found = await self.read_many({run_id: after_sequence}, limit=limit)
        return found.get(run_id, [])

    async def read_many(self, cursors: Mapping[str, int], *, limit: int) -> dict[str, list[EventBatch]]:
        connecting = self._writer.connecting
        if connecting is None:
            return {}
        async with self._reads:
            if self._patience.is_spent:
                return {}
            with contextlib.suppress(RedisUnavailable), self._patience.wait():
                streams = await asyncio.shield(connecting)
                return await streams.read(cursors, limit=limit)
        return {}

    async def _connect(self) -> "RedisStreams":
        module = await load("streams")
        streams: RedisStreams = module.RedisStreams(url=self._url, patience=self._patience, sealer=self._sealer)
        return streams

    def _put(self, entry: Entry) -> None:
        self._backlog.put(entry)
        self._writer.wake()

    async def _write(self, streams: "RedisStreams") -> None:
        """Writes some of what there is to write. Raises RedisUnavailable, and nothing else."""
        batch: list[Entry] = []
        try:
            if await streams.renew() or self._backlog.incomplete:
                await self._start_replay(streams)
            again = self._replay.take()
            batch = self._backlog.take(held=self._replay)
            written = await streams.write([*again, *batch])
        except RedisUnavailable:
            # Whoever connects next finds out what is there, and starts the replay again.
            self._replay.clear()
            self._backlog.put_back(batch)
            raise
        except Exception as error:
            _log.exception("event log cannot write")
            self._replay.clear()
            # Not to be tried again: it would fail again.
            self._backlog.give_up(batch)
            raise RedisUnavailable(type(error).__name__) from error
        self._count(entry for entry in (*again, *batch) if entry.run_id not in written.waiting)
        self.appended -= written.refused
        if written.refused:
            self._tell_refused(written.refused)
        if written.waiting:
            self._wait(batch, written.waiting)
        else:
            self._waiting.clear()

    def _count(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            events, size = entry.weigh()
            self.appended += events
            self.bytes += size

    def _wait(self, batch: Sequence[Entry], run_ids: Collection[str]) -> None:
        """Facts that this process stored right behind another's may overtake these: they wait a moment for them."""
        now = asyncio.get_running_loop().time()
        self._waiting = {run_id: self._waiting.get(run_id, now + _OVERTAKING_SECONDS) for run_id in run_ids}
        patient = {run_id for run_id, until in self._waiting.items() if now < until}
        waiting = [entry for entry in batch if entry.run_id in run_ids and entry.batches is not None]
        self._backlog.wait([entry._replace(patient=entry.run_id in patient) for entry in waiting])

    async def _start_replay(self, streams: "RedisStreams") -> None:
        tails = await streams.tails([run_id for run_id, _ in self._memory()])
        # Nothing is awaited from here on: backlog and memory belong together.
        starts = self._backlog.starts()
        memory = {
            run_id: tuple(batches)
            for run_id, batches in self._memory()
            if batches and not _reaches(starts.get(run_id), tails.get(run_id, 0), batches[0].first)
        }
        # What waits of these runs is part of what is remembered of them.
        self._backlog.forget(memory)
        self._backlog.incomplete = False
        self._replay.start(memory, tails)
        self._refusal_told = False

    def _tell_refused(self, refused: int) -> None:
        self._refused += refused
        if not self._refusal_told:
            self._refusal_told = True
            _log.warning("the event log refused entries", entries=refused)


def _reaches(start: int | None, tail: int, oldest: int) -> bool:
    """Whether what waits of a run reaches back to the end of its stream, or at least further than memory does."""
    return start is not None and (start <= tail or start < oldest)
