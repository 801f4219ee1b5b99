"""The tail of run events in Redis Streams: one stream per run, the entry id is the event's sequence (contract 11).

Writing never makes anybody wait: one task takes all that has gathered and sends it in one pipeline. Where Redis is
away, events are lost here, and a watcher that needs them gets a Snapshot.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import structlog
from famulus.v1.run_event_pb2 import RunEvent
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

# What a stream keeps of a run, in events, and for how long after the last write and after the end of the run.
_MAX_EVENTS = 10_000
_ACTIVE_SECONDS = 24 * 3_600
_ENDED_SECONDS = 3_600
# Writes under way: more means that Redis is far too slow, and the oldest go.
_MAX_PENDING = 50_000
_WRITE_TIMEOUT = 1.0
# A reader is somebody's call: a Redis that hangs may cost it this much, this often (contract 27).
_READ_TIMEOUT = 0.05
_READ_FAILURES = 5
_LEFT_ALONE_SECONDS = 5.0
_FIELD = b"e"

_log = structlog.get_logger(__name__)


class RedisEventLog:
    """See `ports.EventLog`. Open and close it."""

    def __init__(self, *, url: str) -> None:
        self._writer = _connect(url, timeout=_WRITE_TIMEOUT)
        self._reader = _connect(url, timeout=_READ_TIMEOUT)
        self._pending: list[tuple[str, Sequence[RunEvent] | None, int]] = []
        self._pending_events = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._read_failures = 0
        self._left_alone_until = 0.0
        self.lost = 0

    def open(self) -> None:
        """Starts the writer."""
        self._task = asyncio.create_task(self._write_loop(), name="event-log")

    async def close(self) -> None:
        """Writes what is left, as far as Redis lets it, and closes the connections."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.flush(), _WRITE_TIMEOUT)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._writer.aclose()
        await self._reader.aclose()

    async def flush(self) -> None:
        """Returns once everything published so far is written, or lost."""
        while self._pending or not self._idle.is_set():
            self._wake.set()
            self._idle.clear()
            await self._idle.wait()

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        self._put(run_id, events, _ACTIVE_SECONDS)

    def finish(self, run_id: str) -> None:
        self._put(run_id, (), _ENDED_SECONDS)

    def drop(self, run_id: str) -> None:
        self._put(run_id, None, 0)

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        now = asyncio.get_running_loop().time()
        if now < self._left_alone_until:
            return []
        try:
            entries: Any = await self._reader.xrange(_key(run_id), min=f"({after_sequence}-0", count=limit)
        except (RedisError, OSError) as error:
            self._read_failures += 1
            if self._read_failures >= _READ_FAILURES:
                self._read_failures, self._left_alone_until = 0, now + _LEFT_ALONE_SECONDS
                _log.warning("event log unreachable, left alone", error=type(error).__name__)
            return []
        self._read_failures = 0
        return [RunEvent.FromString(fields[_FIELD]) for _, fields in entries]

    def _put(self, run_id: str, events: Sequence[RunEvent] | None, seconds: int) -> None:
        self._pending.append((run_id, events, seconds))
        self._pending_events += len(events or ())
        while self._pending_events > _MAX_PENDING:
            _, oldest, _ = self._pending.pop(0)
            self._pending_events -= len(oldest or ())
            self.lost += len(oldest or ())
        self._idle.clear()
        self._wake.set()

    async def _write_loop(self) -> None:
        while True:
            if not self._pending:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            batch, self._pending, self._pending_events = self._pending, [], 0
            try:
                await self._write(batch)
            except (RedisError, OSError) as error:
                lost = sum(len(events or ()) for _, events, _ in batch)
                self.lost += lost
                _log.warning("events lost to the event log", events=lost, error=type(error).__name__)

    async def _write(self, batch: Sequence[tuple[str, Sequence[RunEvent] | None, int]]) -> None:
        pipeline: Pipeline
        async with self._writer.pipeline(transaction=False) as pipeline:
            expiries: dict[bytes, int] = {}
            for run_id, events, seconds in batch:
                key = _key(run_id)
                if events is None:
                    pipeline.delete(key)
                    expiries.pop(key, None)
                    continue
                for event in events:
                    pipeline.xadd(
                        key,
                        {_FIELD: event.SerializeToString()},
                        id=f"{event.sequence}-0",
                        maxlen=_MAX_EVENTS,
                        approximate=True,
                    )
                expiries[key] = seconds
            for key, seconds in expiries.items():
                pipeline.expire(key, seconds)
            # A refused entry (an id that is not higher: a late writer) must not hide the fate of the others.
            results = await pipeline.execute(raise_on_error=False)
        refused = [result for result in results if isinstance(result, ResponseError)]
        if refused:
            self.lost += len(refused)
            _log.warning("the event log refused entries", entries=len(refused), error=str(refused[0]))
        failed = [result for result in results if isinstance(result, RedisError | OSError)]
        if len(failed) > len(refused):
            raise RedisError("pipeline broken off")


def _key(run_id: str) -> bytes:
    # The braces make a run's keys live on one node of a cluster.
    return f"famulus:{{{run_id}}}:events".encode()


def _connect(url: str, *, timeout: float) -> Redis:
    # The library's own defaults would hang for seconds on a dead server.
    client: Redis = Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    return client
