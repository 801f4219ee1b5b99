"""Redis Streams as the event log uses them: one stream per run, the entry id is the event's sequence (contract 11)."""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from famulus.v1.run_event_pb2 import RunEvent
from famulus_server.coordination.event_log import Entry, StreamsUnavailable

# What a stream keeps of a run, in events.
_MAX_EVENTS = 10_000
_WRITE_TIMEOUT = 1.0
# A reader is somebody's call (contract 27).
_READ_TIMEOUT = 0.05
_LATE = 0.005
_FIELD = b"e"


class RedisStreams:
    """The streams of all runs behind one URL."""

    def __init__(self, *, url: str) -> None:
        self._writer = _connect(url, timeout=_WRITE_TIMEOUT)
        self._reader = _connect(url, timeout=_READ_TIMEOUT)

    async def close(self) -> None:
        """Closes the connections."""
        await self._writer.aclose()
        await self._reader.aclose()

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        """Events behind a sequence. Raises StreamsUnavailable."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await self._read(run_id, after_sequence, limit)
        except StreamsUnavailable:
            # A timer that went off late tells of our own loop or machine, not of Redis: its answer may be there.
            if loop.time() - started < _READ_TIMEOUT + _LATE:
                raise
        return await self._read(run_id, after_sequence, limit)

    async def _read(self, run_id: str, after_sequence: int, limit: int) -> list[RunEvent]:
        try:
            # The package's types also tell of answers that other options would bring.
            entries: Any = await self._reader.xrange(_key(run_id), min=f"({after_sequence}-0", count=limit)
        except (RedisError, OSError) as error:
            raise StreamsUnavailable(type(error).__name__) from error
        return [RunEvent.FromString(fields[_FIELD]) for _, fields in entries]

    async def write(self, batch: Iterable[Entry]) -> int:
        """Writes all in one pipeline; returns how many entries Redis refused, as those of a late writer, whose ids are
        not higher than the last. Raises StreamsUnavailable, and then nobody knows what was written."""
        pipeline: Pipeline
        async with self._writer.pipeline(transaction=False) as pipeline:
            expiries: dict[bytes, int] = {}
            for entry in batch:
                key = _key(entry.run_id)
                if entry.payloads is None:
                    pipeline.delete(key)
                    expiries.pop(key, None)
                    continue
                for sequence, payload in entry.payloads:
                    pipeline.xadd(key, {_FIELD: payload}, id=f"{sequence}-0", maxlen=_MAX_EVENTS, approximate=True)
                expiries[key] = entry.seconds
            for key, seconds in expiries.items():
                pipeline.expire(key, seconds)
            try:
                # A refused entry must not hide the fate of the others.
                results = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                raise StreamsUnavailable(type(error).__name__) from error
        return sum(isinstance(result, ResponseError) for result in results)


def _key(run_id: str) -> bytes:
    # The braces make a run's keys live on one node of a cluster.
    return f"famulus:{{{run_id}}}:events".encode()


def _connect(url: str, *, timeout: float) -> Redis:
    # The library's own defaults would hang for seconds on a dead server.
    client: Redis = Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    return client
