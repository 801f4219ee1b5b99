"""The event log on a real Valkey: what it keeps, and what happens where Valkey does not answer (contract 2, 11, 27)."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from batches import alone, delta, end
from batches import deltas as events
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent
from famulus_server.coordination import backlog, event_log, streams
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.packing import events_of, pack
from famulus_server.ports import EventBatch

KEY = "famulus:{run_1}:events"
LEFT_ALONE = "Redis unreachable"
UNREACHABLE, REACHABLE = "event log (writing) unreachable", "event log (writing) reachable again"


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
    opened = RedisEventLog(url=url, patience=Patience())
    opened.open()
    yield opened
    await opened.close()


def takeover(sequence: int, *, discards_after: int) -> EventBatch:
    return alone(RunEvent(sequence=sequence, attempt_started=AttemptStarted(discards_after_sequence=discards_after)))


def sequences(found: Sequence[EventBatch]) -> list[int]:
    return [event.sequence for event in events_of(found)]


async def read(log: RedisEventLog, *, after: int = 0, limit: int = 1_000) -> list[int]:
    await log.flush()
    return sequences(await log.read("run_1", after_sequence=after, limit=limit))


async def evals(redis: Redis) -> int:
    return int((await redis.info("commandstats"))["cmdstat_eval"]["calls"])


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


async def test_batch_comes_back_whole_also_to_who_has_a_part_of_it(log: RedisEventLog) -> None:
    [batch] = pack(map(delta, range(1, 101)))
    log.publish("run_1", [batch])
    await log.flush()
    assert await log.read("run_1", after_sequence=60, limit=1) == [batch]
    assert await log.read("run_1", after_sequence=100, limit=1) == []


async def test_late_batch_is_counted_with_its_events(log: RedisEventLog) -> None:
    log.publish("run_1", events((2 << 32) + 1))
    await log.flush()
    with capture_logs():
        log.publish("run_1", pack(map(delta, range(1, 8))))
        await log.flush()
    assert log.lost == 7


async def test_runs_do_not_see_each_other(log: RedisEventLog) -> None:
    log.publish("run_1", events(1))
    log.publish("run_2", events(1, 2))
    assert await read(log) == [1]


async def test_entry_id_is_the_last_sequence_of_its_batch(log: RedisEventLog, redis: Redis) -> None:
    log.publish("run_1", [*events(1), *pack(map(delta, range(2, 6))), takeover((3 << 32) + 1, discards_after=1)])
    await log.flush()
    entries: Any = await redis.xrange(KEY)
    assert [entry for entry, _ in entries] == [b"1-0", b"5-0", b"12884901889-0"]


async def test_late_writer_is_refused_and_hurts_nobody(log: RedisEventLog) -> None:
    log.publish("run_1", events((2 << 32) + 1))
    await log.flush()
    with capture_logs() as told:
        log.publish("run_1", events(5, 6))
        log.publish("run_2", events(1))
        log.publish("run_1", events((2 << 32) + 2))
        assert await read(log) == [(2 << 32) + 1, (2 << 32) + 2]
        assert log.lost == 2
        log.publish("run_1", events(7))
        await log.flush()
    assert [entry["event"] for entry in told] == ["the event log refused entries"]
    assert sequences(await log.read("run_2", after_sequence=0, limit=10)) == [1]


async def test_only_the_newest_events_of_a_long_run_are_kept(
    log: RedisEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MAX_BATCHES", 100)
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
    log.publish("run_1", [end(3)])
    await log.flush()
    assert 3_600 - 60 < await redis.ttl(KEY) <= 3_600


async def test_dropped_run_leaves_nothing_and_what_comes_late_is_refused(
    log: RedisEventLog, redis: Redis, url: str
) -> None:
    log.publish("run_1", events(1))
    await log.flush()
    log.publish("run_1", events(2))
    log.drop("run_1")
    assert await read(log) == []
    late = RedisEventLog(url=url, patience=Patience())
    late.open(replay=lambda: [("run_1", events(1, 2, 3))])
    late.publish("run_1", events(3))
    late.publish("run_1", [takeover(9 << 32, discards_after=1)])
    await late.close()
    assert await read(log) == []
    assert await redis.xlen(KEY) == 0
    assert 0 < await redis.ttl(KEY) <= 3_600


async def test_events_of_many_runs_are_read_at_once(log: RedisEventLog) -> None:
    log.publish("run_1", events(*range(1, 601)))
    log.publish("run_2", events(1, 2, 3))
    log.publish("run_3", events(1))
    await log.flush()
    found = await log.read_many({"run_0": 0, "run_1": 10, "run_3": 1, "run_2": 1, "run_4": 7}, limit=500)
    assert {run_id: sequences(of_run) for run_id, of_run in found.items()} == {
        "run_1": list(range(11, 511)),
        "run_2": [2, 3],
    }
    assert await log.read_many({}, limit=500) == {}


@pytest.mark.usefixtures("unhurried")
async def test_answers_stay_small_where_batches_are_large(log: RedisEventLog, redis: Redis) -> None:
    published = events(*range(1, 21), text="y" * 100_000)
    log.publish("run_1", published)
    log.publish("run_2", events(1, 2))
    await log.flush()
    before = await evals(redis)
    found = await log.read_many({"run_1": 0, "run_2": 1}, limit=18)
    # Three of the large ones are enough for an answer.
    assert await evals(redis) - before == 7
    assert (found["run_1"], sequences(found["run_2"])) == (published[:18], [2])


@pytest.mark.usefixtures("unhurried")
async def test_two_thousand_runs_are_read_at_once(log: RedisEventLog, redis: Redis) -> None:
    cursors = {f"run_{number}": number % 2 for number in range(2_000)}
    for run_id in cursors:
        log.publish(run_id, events(1))
    await log.flush()
    await redis.set("famulus:{run_4}:events", "not a stream")
    before = await evals(redis)
    found = await log.read_many(cursors, limit=256)
    assert set(found) == {run_id for run_id, cursor in cursors.items() if cursor == 0} - {"run_4"}
    # Answers stay small, and are few all the same: 500 runs or 256 events in each.
    assert await evals(redis) - before == 4
    for run_id in cursors:
        log.publish(run_id, events(2))
    await log.flush()
    before = await evals(redis)
    assert len(await log.read_many(cursors, limit=256)) == 1_999
    assert 10 < await evals(redis) - before < 15


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


async def test_news_of_a_run_are_hinted_at_once_they_can_be_read(log: RedisEventLog, redis: Redis) -> None:
    async with redis.pubsub() as subscription:
        await subscription.subscribe("famulus:hints:events:run_1")
        assert (await subscription.get_message(timeout=5.0) or {})["type"] == "subscribe"
        log.publish("run_1", events(1, 2))
        log.publish("run_2", events(1))
        assert (await subscription.get_message(timeout=5.0) or {})["type"] == "message"
        assert sequences(await log.read("run_1", after_sequence=0, limit=10)) == [1, 2]
        # What is refused is no news.
        log.publish("run_1", events(1))
        await log.flush()
        assert await subscription.get_message(timeout=0.0) is None


async def test_events_that_overtook_those_of_another_replica_wait_for_them(
    log: RedisEventLog, redis: Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_OVERTAKING_SECONDS", 60.0)
    other = RedisEventLog(url=url, patience=Patience())
    other.open()
    other.publish("run_1", events(3))
    other.publish("run_1", [end(4)])
    other.publish("run_2", events(1))
    assert await redis.xread({"famulus:{run_2}:events": "0"}, block=5_000)
    assert await log.read("run_1", after_sequence=0, limit=10) == []
    log.publish("run_1", events(1, 2))
    await log.flush()
    await other.flush()
    assert await read(log) == [1, 2, 3, 4]
    assert (log.lost, other.lost) == (0, 0)
    assert await redis.ttl(KEY) <= 3_600
    await other.close()


async def test_stream_without_what_came_before_starts_anew_and_still_refuses_late_writers(
    log: RedisEventLog, redis: Redis
) -> None:
    log.publish("run_1", events(1, 2, 3))
    await log.flush()
    log.publish("run_1", events(7, 8))
    assert await read(log) == [7, 8]
    log.publish("run_1", events(4, 5))
    assert await read(log) == [7, 8]
    # An attempt may jump over what it takes back, and over nothing else.
    log.publish("run_1", [takeover((2 << 32) + 1, discards_after=8), *events((2 << 32) + 2)])
    assert await read(log) == [7, 8, (2 << 32) + 1, (2 << 32) + 2]
    log.publish("run_1", [takeover((3 << 32) + 1, discards_after=(2 << 32) + 3)])
    assert await read(log) == [(3 << 32) + 1]


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


@pytest.fixture
async def memory(url: str) -> AsyncIterator[Memory]:
    log = RedisEventLog(url=url, patience=Patience())
    remembered = Memory(log)
    log.open(replay=remembered.replay)
    yield remembered
    await log.close()


async def kill(redis: Redis, valkey: EmbeddedValkey) -> None:
    os.kill(await process_of(redis), signal.SIGKILL)
    await valkey.exited()


async def stored(redis: Redis, key: str = KEY) -> list[int]:
    entries: Any = await redis.xrange(key)
    return [int(entry.partition(b"-")[0]) for entry, _ in entries]


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
