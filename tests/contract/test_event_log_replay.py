"""The event log of a Valkey that has forgotten: it gets again what is in memory (contract 2, 11)."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from batches import deltas as events
from batches import end
from contract.event_log_stage import (
    KEY,
    REACHABLE,
    UNREACHABLE,
    Memory,
    kill,
    read,
    stored,
)
from contract.freezing import frozen, process_of
from famulus_server.coordination import backlog, streams
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey


@pytest.fixture
async def memory(url: str) -> AsyncIterator[Memory]:
    log = RedisEventLog(url=url, patience=Patience())
    remembered = Memory(log)
    log.open(replay=remembered.replay)
    yield remembered
    await log.close()


@pytest.mark.parametrize("meanwhile", [False, True], ids=["unnoticed", "noticed"])
async def test_valkey_that_comes_back_empty_gets_all_that_is_in_memory(
    memory: Memory, redis: Redis, valkey: EmbeddedValkey, tmp_path: Path, *, meanwhile: bool
) -> None:
    log = memory._log
    memory.publish("run_0", *events(1, 2), end(3))
    memory.publish("run_1", *events(*range(1, 1_201)))
    await log.flush()
    await kill(redis, valkey)
    shutil.rmtree(tmp_path / "valkey" / "appendonlydir")
    with capture_logs() as told:
        if meanwhile:
            memory.publish("run_1", *events(1_201))
            memory.publish("run_2", *events(1, 2), end(3))
            await log.flush()
        await valkey.start()
        memory.publish("run_1", *events(*range(len(memory.runs["run_1"]) + 1, 1_301)))
        await log.flush()
        if meanwhile:
            # It returned after a failure, perhaps.
            await log.flush()
    assert await stored(redis) == list(range(1, 1_301))
    assert await stored(redis, "famulus:{run_0}:events") == [1, 2, 3]
    assert 0 < await redis.ttl("famulus:{run_0}:events") <= 3_600 < await redis.ttl(KEY)
    if meanwhile:
        assert await stored(redis, "famulus:{run_2}:events") == [1, 2, 3]
        assert 0 < await redis.ttl("famulus:{run_2}:events") <= 3_600
    assert log.lost == 0
    assert [entry["event"] for entry in told] == ([UNREACHABLE, REACHABLE] if meanwhile else [])


async def test_what_is_published_while_memory_is_written_again_comes_behind_it(
    memory: Memory, redis: Redis, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    for run in range(3):
        memory.publish(f"run_{run}", *events(*range(1, 2_001)))
    await memory._log.flush()
    await kill(redis, valkey)
    shutil.rmtree(tmp_path / "valkey" / "appendonlydir")
    await valkey.start()
    sequence = 2_000
    writing = asyncio.create_task(memory._log.flush())
    for run in range(3):
        memory.publish(f"run_{run}", *events(sequence + 1))
    while not writing.done():
        await asyncio.sleep(0)
        if sequence < 2_500:
            sequence += 1
            for run in range(3):
                memory.publish(f"run_{run}", *events(sequence + 1))
    for run in range(3):
        assert await stored(redis, f"famulus:{{run_{run}}}:events") == [*range(1, sequence + 2)]
    assert memory._log.lost == 0


async def test_what_was_published_during_an_outage_comes_later_even_if_nobody_remembers_it(
    log: RedisEventLog, redis: Redis, valkey: EmbeddedValkey
) -> None:
    log.publish("run_1", events(1))
    log.publish("run_2", events(1))
    await log.flush()
    await kill(redis, valkey)
    with capture_logs() as told:
        log.publish("run_1", events(2))
        log.drop("run_2")
        for _ in range(3):
            await log.flush()
        await valkey.start()
        log.publish("run_1", events(3))
        await log.flush()
        assert await read(log) == [1, 2, 3]
    assert await redis.xlen("famulus:{run_2}:events") == 0
    assert log.lost == 0
    assert [entry["event"] for entry in told] == [UNREACHABLE, REACHABLE]


async def test_what_waits_is_written_even_if_memory_has_trimmed_it(
    memory: Memory, redis: Redis, valkey: EmbeddedValkey
) -> None:
    # Before there is any connection, and during an outage.
    memory.publish("run_1", *events(*range(1, 11)))
    memory.runs["run_1"] = memory.runs["run_1"][-1:]
    await memory._log.flush()
    assert await stored(redis) == [*range(1, 11)]
    await kill(redis, valkey)
    memory.publish("run_1", *events(*range(11, 21)))
    memory.publish("run_2", *events(*range(1, 21)))
    memory.runs = {run_id: remembered[-1:] for run_id, remembered in memory.runs.items()}
    await memory._log.flush()
    await valkey.start()
    await memory._log.flush()
    assert await stored(redis) == [*range(1, 21)]
    assert await stored(redis, "famulus:{run_2}:events") == [*range(1, 21)]


async def test_what_a_full_valkey_refused_comes_later_even_if_nobody_remembers_it(
    log: RedisEventLog, redis: Redis
) -> None:
    log.publish("run_1", events(1))
    log.publish("run_2", events(1))
    await log.flush()
    await redis.config_set("maxmemory", 1)
    log.publish("run_1", [end(2)])
    log.drop("run_2")
    await log.flush()
    await redis.config_set("maxmemory", 0)
    assert await read(log) == [1, 2]
    assert 0 < await redis.ttl(KEY) <= 3_600
    assert await redis.xlen("famulus:{run_2}:events") == 0
    assert log.lost == 0


async def test_events_whose_answer_got_lost_are_written_once_and_are_no_loss(
    url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_WRITE_TIMEOUT", 0.2)
    log = RedisEventLog(url=url, patience=Patience())
    log.open()
    log.publish("run_1", events(1))
    await log.flush()
    with frozen(await process_of(redis)):
        log.publish("run_1", events(2))
        await log.flush()
        log.publish("run_1", events(3))
    assert await read(log) == [1, 2, 3]
    assert log.lost == 0
    await log.close()


async def test_stream_has_no_hole_where_neither_memory_nor_what_waits_reaches_back(
    memory: Memory, redis: Redis, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.publish("run_1", *events(1, 2, 3))
    memory.publish("run_2", *events(1, 2, 3))
    await memory._log.flush()
    await kill(redis, valkey)
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 4)
    for sequence in range(4, 10):
        memory.publish("run_1", *events(sequence))
        memory.publish("run_2", *events(sequence))
    del memory.runs["run_1"][:5], memory.runs["run_2"][:3]
    await memory._log.flush()
    await valkey.start()
    await memory._log.flush()
    assert await stored(redis) == [6, 7, 8, 9]
    assert await stored(redis, "famulus:{run_2}:events") == [*range(1, 10)]


async def test_stream_has_no_hole_after_more_was_published_than_may_wait(
    memory: Memory, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.publish("run_1", *events(1))
    await memory._log.flush()
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 10)
    for sequence in range(2, 101):
        memory.publish("run_1", *events(sequence))
    assert memory._log.lost == 89
    await memory._log.flush()
    assert await stored(redis) == [*range(1, 101)]


async def test_run_that_is_dropped_during_an_outage_does_not_come_back(
    memory: Memory, redis: Redis, valkey: EmbeddedValkey
) -> None:
    memory.publish("run_1", *events(1, 2))
    await memory._log.flush()
    await kill(redis, valkey)
    memory.publish("run_1", *events(3))
    await memory._log.flush()
    del memory.runs["run_1"]
    memory._log.drop("run_1")
    await valkey.start()
    await memory._log.flush()
    assert await stored(redis) == []


async def test_frozen_valkey_gets_everything_once_it_thaws(memory: Memory, redis: Redis) -> None:
    memory.publish("run_1", *events(1))
    await memory._log.flush()
    with capture_logs() as told:
        with frozen(await process_of(redis)):
            for sequence in range(2, 32):
                memory.publish("run_1", *events(sequence))
                # Three seconds in all: longer than the writer waits for an answer.
                await asyncio.sleep(0.1)
        await memory._log.flush()
        await memory._log.flush()
    assert await stored(redis) == [*range(1, 32)]
    assert memory._log.lost == 0
    assert [entry["event"] for entry in told] == [UNREACHABLE, REACHABLE]


@pytest.mark.parametrize(
    ("refuse", "accept", "reason"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OutOfMemoryError"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "ResponseError: NOREPLICAS"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "ReadOnlyError"),
        ("ACL SETUSER default -eval", "ACL SETUSER default +eval", "NoPermissionError"),
    ],
)
async def test_valkey_that_refuses_writes_is_as_good_as_away(
    memory: Memory, redis: Any, refuse: str, accept: str, reason: str
) -> None:
    memory.publish("run_1", *events(1))
    await memory._log.flush()
    with capture_logs() as told:
        await redis.execute_command(*refuse.split())
        for sequence in range(2, 4):
            memory.publish("run_1", *events(sequence))
            await memory._log.flush()
        await redis.execute_command(*accept.split())
        memory.publish("run_1", *events(4))
        await memory._log.flush()
        await memory._log.flush()
    assert await stored(redis) == [1, 2, 3, 4]
    assert memory._log.lost == 0
    assert [(entry["event"], entry.get("error")) for entry in told] == [(UNREACHABLE, reason), (REACHABLE, None)]
