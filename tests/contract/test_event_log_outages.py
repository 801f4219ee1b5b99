"""The event log where Valkey does not answer, refuses or is full (contract 2, 27)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from batches import deltas as events
from contract.event_log_stage import (
    KEY,
    LEFT_ALONE,
    REACHABLE,
    UNREACHABLE,
    read,
    sequences,
    stored,
)
from contract.freezing import frozen, process_of
from famulus_server.coordination import backlog, streams
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience


async def test_reading_many_from_a_frozen_valkey_finds_nothing_and_is_counted(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    with capture_logs() as told, frozen(await process_of(redis)):
        for _ in range(5):
            assert await log.read_many({"run_1": 0, "run_2": 0}, limit=10) == {}
    assert [entry["event"] for entry in told] == [LEFT_ALONE]


async def test_what_was_published_is_written_before_the_log_closes(url: str, redis: Redis) -> None:
    log = RedisEventLog(url=url, patience=Patience())
    log.open()
    log.publish("run_1", events(*range(1, 501)))
    await log.close()
    assert await redis.xlen(KEY) == 500


async def test_read_from_a_frozen_valkey_finds_nothing_and_the_next_one_may_succeed(
    log: RedisEventLog, redis: Redis
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    with capture_logs() as told, frozen(await process_of(redis)):
        for _ in range(4):
            assert await log.read("run_1", after_sequence=0, limit=10) == []
    assert told == []
    assert await read(log) == [1]


async def test_valkey_that_stays_frozen_is_left_alone_after_five_reads(
    log: RedisEventLog, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    with capture_logs() as told, frozen(await process_of(redis)):
        for number in range(1, 6):
            assert [entry["event"] for entry in told] == []
            assert await log.read("run_1", after_sequence=0, limit=10) == [], f"read {number}"
        assert [entry["event"] for entry in told] == [LEFT_ALONE]
        # As many more as anybody likes: nobody is asked, so nobody counts up to five again.
        for _ in range(20):
            assert await log.read("run_1", after_sequence=0, limit=10) == []
    assert len(told) == 1
    assert await log.read("run_1", after_sequence=0, limit=10) == []
    # Its time is over.
    monkeypatch.setattr(log._patience, "_left_alone_until", 0.0)
    assert await read(log) == [1]


async def test_failures_count_only_when_they_follow_each_other(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    process = await process_of(redis)
    for _ in range(3):
        with capture_logs() as told, frozen(process):
            for _ in range(2):
                assert await log.read("run_1", after_sequence=0, limit=10) == []
        assert told == []
        assert await read(log) == [1]


async def test_publishing_to_a_frozen_valkey_makes_nobody_wait(log: RedisEventLog, redis: Redis) -> None:
    with frozen(await process_of(redis)):
        for number in range(1, 101):
            log.publish("run_1", events(number))
        # The writer is stuck; whoever publishes is not.
        assert await asyncio.wait_for(asyncio.sleep(0, "at once"), 1.0) == "at once"
    await log.flush()


async def test_events_that_nobody_takes_are_dropped_oldest_first(
    url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 10)
    log = RedisEventLog(url=url, patience=Patience())
    # Not open yet: everything stays in the queue.
    for number in range(1, 26):
        log.publish("run_1", events(number))
    assert log.lost == 15
    log.open()
    assert await read(log) == list(range(16, 26))
    await log.close()


async def test_what_waits_is_bounded_in_bytes(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_MAX_BYTES", 10_000)
    log = RedisEventLog(url=url, patience=Patience())
    for number in range(1, 26):
        log.publish("run_1", events(number, text="x" * 1_000))
    assert log.lost == 16
    log.open()
    assert await read(log) == list(range(17, 26))
    await log.close()


async def test_overflow_does_not_keep_the_stream_of_a_deleted_thread(
    url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.xadd(KEY, {"e": b""}, id="1-0")
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 10)
    log = RedisEventLog(url=url, patience=Patience())
    log.publish("run_1", events(2))
    log.drop("run_1")
    for number in range(1, 26):
        log.publish("run_2", events(number))
    log.open()
    await log.flush()
    assert await redis.xlen(KEY) == 0
    assert sequences(await log.read("run_2", after_sequence=0, limit=100)) == list(range(16, 26))
    await log.close()


@pytest.mark.usefixtures("unhurried")
async def test_thousand_reads_at_once_all_find_what_is_there(log: RedisEventLog) -> None:
    log.publish("run_1", events(1, 2))
    await log.flush()
    with capture_logs() as told:
        found = await asyncio.gather(*(log.read("run_1", after_sequence=0, limit=10) for _ in range(1_000)))
    assert [sequences(one) for one in found] == [[1, 2]] * 1_000
    assert told == []


async def test_of_a_thousand_reads_at_once_few_wait_for_a_frozen_valkey(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    with capture_logs() as told, frozen(await process_of(redis)):
        async with asyncio.timeout(2.0):
            found = await asyncio.gather(*(log.read("run_1", after_sequence=0, limit=10) for _ in range(1_000)))
    assert found == [[]] * 1_000
    # So few that it is not even left alone.
    assert told == []


async def test_foreign_kind_of_key_is_no_error(log: RedisEventLog, redis: Redis) -> None:
    await redis.set(KEY, "not a stream")
    log.publish("run_1", events(1))
    assert await read(log) == []
    assert log.lost >= 1


async def test_url_on_which_nothing_listens_is_no_error(tmp_path: Path) -> None:
    log = RedisEventLog(url=f"unix://{tmp_path}/nobody.sock", patience=Patience())
    log.open()
    log.publish("run_1", events(1))
    await log.flush()
    assert await log.read("run_1", after_sequence=0, limit=10) == []
    await log.close()


async def test_url_that_nobody_understands_is_told_without_its_secrets() -> None:
    log = RedisEventLog(url="redis://:secret/1@nowhere", patience=Patience())
    log.publish("run_1", events(1))
    with capture_logs() as told:
        log.open()
        assert await read(log) == []
        log.publish("run_1", events(2, 3))
        assert await read(log) == []
        await log.close()
    assert told[0]["event"] == "event log cannot be used"
    assert "secret" not in str(told)


async def test_writer_outlives_what_nobody_foresaw(
    log: RedisEventLog, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(*_: object) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(streams.RedisStreams, "write", write)
        log.publish("run_1", events(1, 2))
        await log.flush()
    assert log.lost == 2
    log.publish("run_1", events(3))
    assert await read(log) == [3]


async def test_valkey_that_wants_a_password_is_as_good_as_away(url: str, redis: Any) -> None:
    await redis.execute_command("ACL", "SETUSER", "somebody", "on", ">right", "~*", "&*", "+@all")
    with capture_logs() as told:
        log = RedisEventLog(url=f"{url}?username=somebody&password=secret", patience=Patience())
        log.open()
        for sequence in range(1, 4):
            log.publish("run_1", events(sequence))
            assert await read(log) == []
        await redis.execute_command("ACL", "SETUSER", "somebody", ">secret")
        await log.flush()
        await log.flush()
        assert await stored(redis) == [1, 2, 3]
        await log.close()
    assert [(entry["event"], entry.get("error")) for entry in told] == [
        (UNREACHABLE, "AuthenticationError"),
        (REACHABLE, None),
    ]
    assert "secret" not in str(told)


async def test_closed_log_leaves_no_task_and_no_connection(url: str, redis: Redis) -> None:
    tasks = asyncio.all_tasks()
    log = RedisEventLog(url=url, patience=Patience())
    log.open()
    log.publish("run_1", events(1))
    assert await read(log) == [1]
    await log.close()
    assert asyncio.all_tasks() == tasks
    async with asyncio.timeout(5.0):
        while len(await redis.client_list()) > 1:
            pass
