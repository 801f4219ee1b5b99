"""Logs of runs in memory."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from batches import alone, delta, deltas
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent, RunStateChanged
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine import feed as feed_module
from famulus_server.engine.feed import Feed, RunLog
from famulus_server.engine.packing import events_of, pack
from famulus_server.ports import EventBatch

ALL = {"max_bytes": 1 << 30}


class RecordingEventLog:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, list[int]]] = []

    def publish(self, run_id: str, batches: Sequence[EventBatch]) -> None:
        self.told.append(("publish", run_id, [event.sequence for event in events_of(batches)]))

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        return []

    async def read_many(self, cursors: Mapping[str, int], *, limit: int) -> Mapping[str, list[EventBatch]]:
        return {}

    def drop(self, run_id: str) -> None:
        self.told.append(("drop", run_id, []))


def started_over(sequence: int, *, discards_after: int = 0) -> EventBatch:
    return alone(RunEvent(sequence=sequence, attempt_started=AttemptStarted(discards_after_sequence=discards_after)))


def changed(sequence: int, state: "RunState.ValueType") -> EventBatch:
    return alone(RunEvent(sequence=sequence, run_state_changed=RunStateChanged(run=Run(state=state))))


def sequences(batches: Sequence[EventBatch] | None) -> list[int] | None:
    return None if batches is None else [event.sequence for event in events_of(batches)]


@pytest.fixture
def event_log() -> RecordingEventLog:
    return RecordingEventLog()


@pytest.fixture
def feed(event_log: RecordingEventLog) -> Feed:
    return Feed(event_log=event_log)


def test_log_gives_what_is_behind_a_sequence() -> None:
    log = RunLog(last_sequence=0)
    log.append(deltas(1, 2, 3))
    log.append([started_over(1 << 32), *deltas((1 << 32) + 1)])
    assert sequences(log.after(0, **ALL)) == [1, 2, 3, 1 << 32, (1 << 32) + 1]
    assert sequences(log.after(2, **ALL)) == [3, 1 << 32, (1 << 32) + 1]
    assert sequences(log.after(100, **ALL)) == [1 << 32, (1 << 32) + 1]
    assert sequences(log.after((1 << 32) + 1, **ALL)) == []
    assert sequences(log.after(1 << 40, **ALL)) == []


def test_log_that_starts_behind_a_sequence_says_that_older_ones_are_gone() -> None:
    log = RunLog(last_sequence=10)
    assert log.after(9, **ALL) is None
    assert sequences(log.after(10, **ALL)) == []
    log.append(deltas(11))
    assert log.after(9, **ALL) is None
    assert sequences(log.after(10, **ALL)) == [11]


def test_log_that_missed_events_goes_on_behind_them_and_says_that_older_ones_are_gone() -> None:
    log = RunLog(last_sequence=0)
    log.append(deltas(1, 2))
    log.append(deltas(7, 8))
    assert log.after(2, **ALL) is None
    assert sequences(log.after(6, **ALL)) == [7, 8]
    # This attempt takes back less than what is missing.
    log.append([started_over(1 << 32, discards_after=20)])
    assert log.after(8, **ALL) is None


def test_what_is_given_is_bounded_by_number_and_by_bytes_but_never_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(last_sequence=0)
    log.append(deltas(1, 2, 3, 4, text="y" * 1_000))
    assert sequences(log.after(0, max_bytes=2_500)) == [1, 2]
    assert sequences(log.after(0, max_bytes=1)) == [1]
    monkeypatch.setattr(feed_module, "_MAX_BATCHES", 3)
    assert sequences(log.after(0, **ALL)) == [1, 2, 3]


def test_who_has_a_part_of_a_batch_gets_the_rest() -> None:
    log = RunLog(last_sequence=0)
    log.append(pack(map(delta, range(1, 6))))
    log.append(deltas(6))
    assert sequences(log.after(0, **ALL)) == [1, 2, 3, 4, 5, 6]
    assert sequences(log.after(3, **ALL)) == [4, 5, 6]
    assert sequences(log.after(4, max_bytes=1)) == [5]


def test_copy_that_overlaps_with_what_is_here_shows_nothing_twice(feed: Feed) -> None:
    log = feed.open("run_1", 0)
    feed.copy("run_1", log, pack(map(delta, range(1, 4))))
    feed.copy("run_1", log, [*pack(map(delta, range(2, 6))), *pack(map(delta, range(4, 8)))])
    assert sequences(log.after(0, **ALL)) == [1, 2, 3, 4, 5, 6, 7]


def test_long_log_is_trimmed_at_its_old_end_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MAX_BYTES", 100_000)
    log = RunLog(last_sequence=0)
    for sequence in range(1, 1_001):
        log.append(deltas(sequence, text="y" * 100))
    assert log.after(0, **ALL) is None
    kept = sequences(log.after(990, **ALL))
    assert kept == list(range(991, 1_001))
    oldest = next(after for after in range(1_000) if log.after(after, **ALL) is not None)
    assert sequences(log.after(oldest, **ALL)) == list(range(oldest + 1, 1_001))
    assert 130 <= 1_000 - oldest <= 280


def test_newest_event_is_kept_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MAX_BYTES", 1_000)
    log = RunLog(last_sequence=0)
    log.append(deltas(1, text="y" * 5_000))
    log.append(deltas(2, text="y" * 5_000))
    assert sequences(log.after(1, **ALL)) == [2]


def test_small_events_count_with_what_they_take_in_memory() -> None:
    log = RunLog(last_sequence=0)
    for sequence in range(1, 20_001):
        log.append(deltas(sequence))
    assert log.after(5_000, **ALL) is None
    assert 2_000 * 1_024 < log.bytes <= 4_096 * 1_024


async def test_one_watcher_that_goes_away_does_not_wake_or_hurt_the_others() -> None:
    log = RunLog(last_sequence=0)
    leaving, staying = asyncio.create_task(log.wait()), asyncio.create_task(log.wait())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not staying.done()
    log.append(deltas(1))
    await staying


async def test_end_wakes_watchers() -> None:
    log = RunLog(last_sequence=0)
    waiting = asyncio.create_task(log.wait())
    await asyncio.sleep(0)
    log.end()
    await waiting
    assert (log.ended, log.deleted) == (True, False)


def test_published_events_are_here_and_sent_on(feed: Feed, event_log: RecordingEventLog) -> None:
    feed.publish("run_1", deltas(5, 6))
    log = feed.find("run_1")
    assert log is not None
    assert log.after(3, **ALL) is None
    assert sequences(log.after(4, **ALL)) == [5, 6]
    assert event_log.told == [("publish", "run_1", [5, 6])]


def test_final_state_ends_the_log_which_stays_for_late_watchers(feed: Feed, event_log: RecordingEventLog) -> None:
    feed.publish("run_1", [*deltas(1), changed(2, RunState.RUN_STATE_COMPLETED)])
    log = feed.find("run_1")
    assert log is not None
    assert log.ended
    assert sequences(log.after(0, **ALL)) == [1, 2]
    assert event_log.told == [("publish", "run_1", [1, 2])]


def test_nothing_is_published_behind_the_end(feed: Feed, event_log: RecordingEventLog) -> None:
    feed.publish("run_1", [changed(1, RunState.RUN_STATE_CANCELLED)])
    feed.publish("run_1", deltas(2))
    log = feed.find("run_1")
    assert log is not None
    assert sequences(log.after(0, **ALL)) == [1]
    assert ("publish", "run_1", [2]) not in event_log.told


def test_waiting_for_action_does_not_end_the_log(feed: Feed) -> None:
    feed.publish("run_1", [changed(1, RunState.RUN_STATE_REQUIRES_ACTION)])
    log = feed.find("run_1")
    assert log is not None
    assert not log.ended


def test_logs_of_ended_runs_are_bounded_in_number(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MAX_IDLE", 3)
    for number in range(5):
        feed.publish(f"run_{number}", [changed(1, RunState.RUN_STATE_COMPLETED)])
    assert [feed.find(f"run_{number}") is None for number in range(5)] == [True, True, False, False, False]


def test_logs_of_ended_runs_are_bounded_by_their_bytes(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MAX_IDLE_BYTES", 32_000)

    def end(number: int) -> None:
        feed.publish(f"run_{number}", [*deltas(1, text="y" * 8_000), changed(2, RunState.RUN_STATE_COMPLETED)])

    for number in range(5):
        end(number)
    assert [feed.find(f"run_{number}") is None for number in range(5)] == [True, True, False, False, False]
    # What a dropped run took is free again.
    feed.drop("run_3")
    end(5)
    assert [feed.find(f"run_{number}") is None for number in (2, 4, 5)] == [False, False, False]


def test_dropped_run_is_gone_and_its_watchers_are_told(feed: Feed, event_log: RecordingEventLog) -> None:
    feed.publish("run_1", deltas(1))
    log = feed.find("run_1")
    assert log is not None
    feed.drop("run_1")
    assert (log.ended, log.deleted) == (True, True)
    assert feed.find("run_1") is None
    assert event_log.told[-1] == ("drop", "run_1", [])


async def test_order_is_one_lock_per_run_as_long_as_somebody_holds_it(feed: Feed) -> None:
    async with feed.order("run_1"):
        assert feed.order("run_1").locked()
        assert not feed.order("run_2").locked()
    assert not feed.order("run_1").locked()
