"""What tests of the event log have in common."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from redis.asyncio import Redis

from batches import alone
from contract.freezing import process_of
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.packing import events_of
from famulus_server.ports import EventBatch

KEY = "famulus:{run_1}:events"
LEFT_ALONE = "Redis unreachable"
UNREACHABLE, REACHABLE = "event log (writing) unreachable", "event log (writing) reachable again"


def takeover(sequence: int, *, discards_after: int) -> EventBatch:
    return alone(RunEvent(sequence=sequence, attempt_started=AttemptStarted(discards_after_sequence=discards_after)))


def sequences(found: Sequence[EventBatch]) -> list[int]:
    return [event.sequence for event in events_of(found)]


async def read(log: RedisEventLog, *, after: int = 0, limit: int = 1_000) -> list[int]:
    await log.flush()
    return sequences(await log.read("run_1", after_sequence=after, limit=limit))


async def evals(redis: Redis) -> int:
    return int((await redis.info("commandstats"))["cmdstat_eval"]["calls"])


class Memory:
    """What a process remembers of its runs, and publishes."""

    def __init__(self, log: RedisEventLog) -> None:
        self._log = log
        self.runs: dict[str, list[EventBatch]] = {}

    def publish(self, run_id: str, *published: EventBatch) -> None:
        self.runs.setdefault(run_id, []).extend(published)
        self._log.publish(run_id, published)

    def replay(self) -> Iterator[tuple[str, Sequence[EventBatch]]]:
        yield from self.runs.items()


async def kill(redis: Redis, valkey: EmbeddedValkey) -> None:
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()


async def stored(redis: Redis, key: str = KEY) -> list[int]:
    entries: Any = await redis.xrange(key)
    return [int(entry.partition(b"-")[0]) for entry, _ in entries]
