"""The event log on a real Valkey: what it keeps (contract 11)."""

from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from batches import delta, end
from batches import deltas as events
from contract.event_log_stage import KEY, evals, read, sequences, takeover
from famulus_server.coordination import event_log, streams
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.patience import Patience
from famulus_server.engine.packing import pack


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
