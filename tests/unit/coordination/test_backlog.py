"""What waits to be written: in order, in bounds, and removals first."""

import pytest

from batches import deltas
from famulus_server.coordination import backlog
from famulus_server.coordination.backlog import Backlog, Entry
from unit.coordination.entries import sequences


def test_batch_is_bounded_and_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_BATCH_EVENTS", 3)
    waiting = Backlog()
    for sequence in range(1, 6):
        waiting.put(Entry("run_1", deltas(sequence), 100))
    taken = waiting.take(held=())
    assert sequences(taken, "run_1") == [1, 2, 3]
    waiting.put_back(taken)
    order = [*waiting.take(held=()), *waiting.take(held=())]
    assert sequences(order, "run_1") == [1, 2, 3, 4, 5]
    assert [entry.again for entry in order] == [True] * 3 + [False] * 2


def test_forgotten_events_leave_room_and_the_rest_of_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 4)
    waiting = Backlog()
    waiting.put(Entry("run_1", deltas(1, 2), 100))
    waiting.put(Entry("run_2", deltas(1, 2), 100))
    waiting.forget({"run_1"})
    waiting.put(Entry("run_2", deltas(3, 4), 100))
    assert (waiting.lost, waiting.incomplete) == (0, False)
    assert [(entry.run_id, len(entry.batches or ())) for entry in waiting.take(held=())] == [
        ("run_2", 2),
        ("run_2", 2),
    ]
    waiting.put(Entry("run_2", deltas(*range(5, 10)), 100))
    assert (waiting.lost, waiting.incomplete) == (5, True)


def test_removal_comes_first_and_takes_what_waits_of_its_run_along() -> None:
    waiting = Backlog()
    for run_id in ("run_1", "run_2", "run_1"):
        waiting.put(Entry(run_id, deltas(1), 100))
    waiting.put(Entry("run_1", None, 10))
    waiting.put(Entry("run_1", None, 10))
    assert [(entry.run_id, entry.batches) for entry in waiting.take(held=())] == [
        ("run_1", None),
        ("run_2", deltas(1)),
    ]
    assert not waiting


def test_removals_are_kept_when_events_have_to_go_and_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_MAX_EVENTS", 2)
    monkeypatch.setattr(backlog, "_MAX_REMOVALS", 3)
    waiting = Backlog()
    for number in range(1, 6):
        waiting.put(Entry(f"run_{number}", None, 10))
        waiting.put(Entry("run_9", deltas(number), 100))
    assert len(waiting) == 5
    taken = waiting.take(held=())
    waiting.put_back(taken)
    taken = waiting.take(held=())
    assert [entry.batches is None for entry in taken] == [True] * 3 + [False] * 2
    assert {entry.run_id for entry in taken[:3]} == {"run_3", "run_4", "run_5"}
