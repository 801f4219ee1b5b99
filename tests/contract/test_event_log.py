"""The event log on a real Valkey: what it keeps, and what happens where Valkey does not answer (contract 2, 11, 27)."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from famulus.v1.run_event_pb2 import RunEvent, TextDelta
from famulus_server.coordination import event_log, streams
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.embedded.valkey import EmbeddedValkey

KEY = "famulus:{run_1}:events"
LEFT_ALONE = "event log unreachable, left alone"


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    embedded = EmbeddedValkey(data_dir=tmp_path)
    yield embedded
    await embedded.close()


@pytest.fixture
async def url(valkey: EmbeddedValkey) -> str:
    return await valkey.start()


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as client:
        yield client


@pytest.fixture
async def log(url: str) -> AsyncIterator[RedisEventLog]:
    opened = RedisEventLog(url=url)
    opened.open()
    yield opened
    await opened.close()


def events(*sequences: int, text: str = "x") -> list[RunEvent]:
    return [RunEvent(sequence=sequence, text_delta=TextDelta(text=text)) for sequence in sequences]


def sequences(found: Sequence[RunEvent]) -> list[int]:
    return [event.sequence for event in found]


async def read(log: RedisEventLog, *, after: int = 0, limit: int = 1_000) -> list[int]:
    await log.flush()
    return sequences(await log.read("run_1", after_sequence=after, limit=limit))


async def process_of(redis: Redis) -> int:
    return int((await redis.info("server"))["process_id"])


@contextmanager
def frozen(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def test_events_come_back_as_they_were_published(log: RedisEventLog) -> None:
    published = [*events(1, 2), *events(3, text="\u2603 \x00")]
    log.publish("run_1", published[:1])
    log.publish("run_1", published[1:])
    await log.flush()
    assert await log.read("run_1", after_sequence=0, limit=10) == published


async def test_events_behind_a_sequence_are_read_up_to_a_limit(log: RedisEventLog) -> None:
    log.publish("run_1", events(*range(1, 11)))
    assert await read(log, after=4) == [5, 6, 7, 8, 9, 10]
    assert await read(log, after=4, limit=3) == [5, 6, 7]
    assert await read(log, after=10) == []
    assert await read(log, after=2**62) == []


async def test_runs_do_not_see_each_other(log: RedisEventLog) -> None:
    log.publish("run_1", events(1))
    log.publish("run_2", events(1, 2))
    assert await read(log) == [1]


async def test_entry_id_is_the_sequence(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", events(1, 2, (3 << 32) + 1))
    await log.flush()
    entries: Any = await redis.xrange(KEY)
    assert [entry for entry, _ in entries] == [b"1-0", b"2-0", b"12884901889-0"]


async def test_late_writer_is_refused_and_hurts_nobody(log: RedisEventLog) -> None:
    log.publish("run_1", events((2 << 32) + 1))
    await log.flush()
    log.publish("run_1", events(5, 6))
    log.publish("run_2", events(1))
    log.publish("run_1", events((2 << 32) + 2))
    assert await read(log) == [(2 << 32) + 1, (2 << 32) + 2]
    assert log.lost == 2
    assert sequences(await log.read("run_2", after_sequence=0, limit=10)) == [1]


async def test_only_the_newest_events_of_a_long_run_are_kept(
    log: RedisEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MAX_EVENTS", 100)
    log.publish("run_1", events(*range(1, 1_001)))
    kept = await read(log)
    assert kept == list(range(kept[0], 1_001))
    assert 100 <= len(kept) < 400


async def test_events_of_an_active_run_are_kept_for_a_day_and_of_an_ended_one_for_an_hour(
    log: RedisEventLog, redis: Redis
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    assert 24 * 3_600 - 60 < await redis.ttl(KEY) <= 24 * 3_600
    log.publish("run_1", events(2))
    log.finish("run_1")
    await log.flush()
    assert 3_600 - 60 < await redis.ttl(KEY) <= 3_600


async def test_dropped_run_leaves_nothing(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    log.publish("run_1", events(2))
    log.drop("run_1")
    assert await read(log) == []
    assert await redis.keys("*") == []


async def test_drop_and_finish_of_an_unknown_run_do_nothing(log: RedisEventLog, redis: Redis) -> None:
    log.drop("run_1")
    log.finish("run_1")
    await log.flush()
    assert await redis.keys("*") == []


async def test_what_was_published_is_written_before_the_log_closes(url: str, redis: Redis) -> None:
    log = RedisEventLog(url=url)
    log.open()
    log.publish("run_1", events(*range(1, 501)))
    await log.close()
    assert await redis.xlen(KEY) == 500


async def test_killed_valkey_costs_events_and_nothing_else(
    log: RedisEventLog, redis: Redis, valkey: EmbeddedValkey
) -> None:
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()
    log.publish("run_1", events(1, 2, 3))
    log.finish("run_1")
    log.drop("run_2")
    await log.flush()
    assert log.lost == 3
    assert await log.read("run_1", after_sequence=0, limit=10) == []


async def test_valkey_that_was_killed_is_used_again_when_it_is_back(
    log: RedisEventLog, redis: Redis, valkey: EmbeddedValkey
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()
    log.publish("run_1", events(2))
    await log.flush()
    await valkey.start()
    log.publish("run_1", events(3))
    # What was lost in between is a gap, which the reader of the port has to look for.
    assert await read(log) == [1, 3]


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
    monkeypatch.setattr(log, "_left_alone_until", 0.0)
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
    monkeypatch.setattr(event_log, "_MAX_PENDING", 10)
    log = RedisEventLog(url=url)
    # Not open yet: everything stays in the queue.
    for number in range(1, 26):
        log.publish("run_1", events(number))
    assert log.lost == 15
    log.open()
    assert await read(log) == list(range(16, 26))
    await log.close()


async def test_what_waits_is_bounded_in_bytes(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_MAX_PENDING_BYTES", 10_000)
    log = RedisEventLog(url=url)
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
    monkeypatch.setattr(event_log, "_MAX_PENDING", 10)
    log = RedisEventLog(url=url)
    log.publish("run_1", events(2))
    log.drop("run_1")
    for number in range(1, 26):
        log.publish("run_2", events(number))
    log.open()
    await log.flush()
    assert await redis.keys("*") == [b"famulus:{run_2}:events"]
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


async def test_thousand_reads_at_once_wait_for_a_frozen_valkey_only_until_it_is_left_alone(
    log: RedisEventLog, redis: Redis
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    with capture_logs() as told, frozen(await process_of(redis)):
        async with asyncio.timeout(2.0):
            found = await asyncio.gather(*(log.read("run_1", after_sequence=0, limit=10) for _ in range(1_000)))
    assert found == [[]] * 1_000
    assert [entry["event"] for entry in told] == [LEFT_ALONE]


@pytest.mark.parametrize("setting", [("maxmemory", "1"), ("min-replicas-to-write", "1")])
async def test_valkey_that_refuses_writes_costs_events_and_nothing_else(
    log: RedisEventLog, redis: Redis, setting: tuple[str, str]
) -> None:
    await redis.config_set(*setting)
    log.publish("run_1", events(1, 2))
    log.finish("run_1")
    await log.flush()
    assert log.lost >= 2
    assert await log.read("run_1", after_sequence=0, limit=10) == []


async def test_foreign_kind_of_key_is_no_error(log: RedisEventLog, redis: Redis) -> None:
    await redis.set(KEY, "not a stream")
    log.publish("run_1", events(1))
    assert await read(log) == []
    assert log.lost >= 1


async def test_url_on_which_nothing_listens_is_no_error(tmp_path: Path) -> None:
    log = RedisEventLog(url=f"unix://{tmp_path}/nobody.sock")
    log.open()
    log.publish("run_1", events(1))
    await log.flush()
    assert await log.read("run_1", after_sequence=0, limit=10) == []
    assert log.lost == 1
    await log.close()


async def test_url_that_nobody_understands_is_told_and_costs_events_and_nothing_else() -> None:
    log = RedisEventLog(url="nonsense://nowhere")
    log.publish("run_1", events(1))
    with capture_logs() as told:
        log.open()
        assert await read(log) == []
        log.publish("run_1", events(2, 3))
        assert await read(log) == []
        assert log.lost == 3
        await log.close()
    assert told[0]["event"] == "event log cannot be used"


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
