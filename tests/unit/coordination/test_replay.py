"""What is written again after Redis was away, and what waits meanwhile."""

import pytest

from batches import deltas
from famulus.v1.run_event_pb2 import AttemptStarted, RunEvent, RunStateChanged
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.coordination import replay
from famulus_server.coordination.backlog import Backlog, Entry, entries_of
from famulus_server.coordination.replay import Replay
from famulus_server.engine.packing import pack
from unit.coordination.entries import sequences


def _follows(entry: Entry) -> int:
    assert entry.batches
    return entry.batches[0].follows


@pytest.fixture
def again() -> Replay:
    return Replay(active_seconds=100, ended_seconds=10)


def test_only_what_is_not_there_is_written_again(again: Replay) -> None:
    again.start({"run_1": deltas(1, 2, 3), "run_2": deltas(1), "run_3": deltas(1, 2)}, {"run_1": 2, "run_2": 1})
    assert ("run_1" in again, "run_2" in again, "run_3" in again) == (True, False, True)
    taken = again.take()
    assert (sequences(taken, "run_1"), sequences(taken, "run_3")) == ([3], [1, 2])
    assert [_follows(entry) for entry in taken] == [2, 0]
    assert all(entry.again for entry in taken)
    assert not again


def test_writing_again_goes_in_small_steps(again: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_BATCH_EVENTS", 10)
    again.start({"run_1": deltas(*range(1, 16)), "run_2": deltas(*range(1, 6))}, {})
    assert sequences(again.take(), "run_1") == [*range(1, 11)]
    assert "run_1" in again
    rest = again.take()
    while again:
        rest += again.take()
    assert sequences(rest, "run_1") == [*range(11, 16)]
    assert sequences(rest, "run_2") == [*range(1, 6)]


def test_steps_are_small_in_bytes_too_and_never_nothing(again: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_BATCH_BYTES", 1_000)
    again.start({"run_1": deltas(1, 2, 3, text="x" * 5_000)}, {})
    assert [sequences(again.take(), "run_1") for _ in range(3)] == [[1], [2], [3]]
    assert not again


def test_run_that_was_dropped_meanwhile_is_not_written_again(again: Replay) -> None:
    again.start({"run_1": deltas(1), "run_2": deltas(1)}, {})
    again.forget("run_1")
    again.forget("run_3")
    assert [entry.run_id for entry in again.take()] == ["run_2"]


def test_ended_run_is_kept_as_long_as_an_ended_run(again: Replay) -> None:
    final = RunEvent(sequence=3, run_state_changed=RunStateChanged(run=Run(state=RunState.RUN_STATE_FAILED)))
    again.start({"run_1": [*deltas(1, 2), *pack([final])], "run_2": deltas(1)}, {})
    assert {entry.run_id: entry.seconds for entry in again.take()} == {"run_1": 10, "run_2": 100}


def test_jumps_begin_entries_that_say_what_they_follow() -> None:
    takeover = RunEvent(sequence=2**33, attempt_started=AttemptStarted(discards_after_sequence=1))
    made = list(entries_of("run_1", [*deltas(1, 2), *pack([takeover]), *deltas(2**33 + 1, 2**33 + 5)], seconds=1))
    assert [(sequences([entry], "run_1"), _follows(entry)) for entry in made] == [
        ([1, 2], 0),
        ([2**33, 2**33 + 1], 1),
        ([2**33 + 5], 2**33 + 4),
    ]


def test_newer_events_wait_for_the_replay_of_their_run_and_for_no_other(again: Replay) -> None:
    waiting = Backlog()
    again.start({"run_1": deltas(*range(1, 2_001))}, {})
    for run_id in ("run_1", "run_2", "run_1", "run_2"):
        waiting.put(Entry(run_id, deltas(9), 100))
    again.take()
    assert [entry.run_id for entry in waiting.take(held=again)] == ["run_2", "run_2"]
    assert waiting.take(held=again) == []
    while again:
        again.take()
    assert [entry.run_id for entry in waiting.take(held=again)] == ["run_1", "run_1"]
    assert not waiting
