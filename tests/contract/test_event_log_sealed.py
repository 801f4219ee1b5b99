"""Events in a real Valkey, encrypted: nobody reads them there, and what is not ours is lost and hurts nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from famulus.v1.run_event_pb2 import RunEvent, TextDelta
from famulus.v1.run_service_pb2 import WatchRunResponse
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience
from famulus_server.encryption.aes import AesKey
from famulus_server.engine.packing import events_of, pack
from famulus_server.ports import Sealer

pytestmark = pytest.mark.usefixtures("unhurried")
OURS, OTHERS = AesKey(b"k" * 32), AesKey(b"o" * 32)
STREAM = "famulus:{%s}:events"
Open = Callable[[Sealer | None], RedisEventLog]


@pytest.fixture
async def open_log(url: str) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def opened(sealer: Sealer | None) -> RedisEventLog:
            log = RedisEventLog(url=url, patience=Patience(), sealer=sealer)
            log.open()
            stack.push_async_callback(log.close)
            return log

        yield opened


async def publish(log: RedisEventLog, *sequences: int, run_id: str = "run_1") -> None:
    for number in sequences:
        log.publish(run_id, pack([RunEvent(sequence=number, text_delta=TextDelta(text="xyzzy"))]))
    await log.flush()


async def read(log: RedisEventLog, run_id: str = "run_1") -> list[int]:
    await log.flush()
    return [event.sequence for event in events_of(await log.read(run_id, after_sequence=0, limit=100))]


def contents(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_sealed_events_are_not_to_be_read_in_redis_and_come_back(
    open_log: Open, redis: Redis, tmp_path: Path
) -> None:
    log = open_log(OURS)
    await publish(log, 1, 2)
    stored: Any = await redis.xrange(STREAM % "run_1")
    assert [entry for entry, _ in stored] == [b"1-0", b"2-0"]
    assert all(b"xyzzy" not in fields[b"e"] for _, fields in stored)
    [event, _] = events_of(await log.read("run_1", after_sequence=0, limit=10))
    assert event.text_delta.text == "xyzzy"
    # Nor in its files.
    await redis.config_set("appendfsync", "always")
    await publish(log, 3)
    on_disk = await asyncio.to_thread(contents, tmp_path)
    assert b"run_1" in on_disk
    assert b"xyzzy" not in on_disk


async def test_without_encryption_they_stand_there_as_they_are(open_log: Open, redis: Redis) -> None:
    await publish(open_log(None), 1)
    stored: Any = await redis.xrange(STREAM % "run_1")
    [(_, fields)] = stored
    assert WatchRunResponse.FromString(fields[b"e"]).events[0].text_delta.text == "xyzzy"


@pytest.mark.parametrize("before", [None, OTHERS], ids=["plain", "with another key"])
async def test_events_from_before_are_lost_and_later_ones_are_read(open_log: Open, before: Sealer | None) -> None:
    await publish(open_log(before), 1, 2)
    log = open_log(OURS)
    assert await read(log) == []
    await publish(log, 3, 4)
    assert await read(log) == [3, 4]


async def test_damaged_event_is_lost_with_those_before_it_and_other_runs_are_not(open_log: Open, redis: Redis) -> None:
    log = open_log(OURS)
    await publish(log, 1, 2, 3, 4)
    await publish(log, 1, 2, run_id="run_2")
    stored: Any = await redis.xrange(STREAM % "run_1")
    await redis.delete(STREAM % "run_1")
    for entry, fields in stored:
        value = fields[b"e"]
        await redis.xadd(STREAM % "run_1", {"e": value[:-1] + b"\x00\x00" if entry == b"2-0" else value}, id=entry)
    found = await log.read_many({"run_1": 0, "run_2": 0}, limit=10)
    assert {run_id: [batch.last for batch in batches] for run_id, batches in found.items()} == {
        "run_1": [3, 4],
        "run_2": [1, 2],
    }


async def test_events_of_another_run_are_not_taken_for_this_ones(open_log: Open, redis: Redis) -> None:
    log = open_log(OURS)
    await publish(log, 1)
    await redis.rename(STREAM % "run_1", STREAM % "run_2")
    assert await read(log, "run_2") == []


async def test_who_knows_no_encryption_takes_sealed_events_for_damaged(open_log: Open) -> None:
    await publish(open_log(OURS), 1, 2)
    assert await read(open_log(None)) == []
