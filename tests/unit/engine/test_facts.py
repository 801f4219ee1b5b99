"""Numbering of run events."""

from datetime import UTC, datetime
from itertools import pairwise

from famulus.v1.run_event_pb2 import RunEvent
from famulus_server.engine import facts

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def test_events_are_numbered_behind_the_last_sequence_and_get_a_time() -> None:
    events = [RunEvent() for _ in range(3)]
    assert facts.number(events, 41, NOW) == 44
    assert [event.sequence for event in events] == [42, 43, 44]
    assert all(event.event_time.ToDatetime(UTC) == NOW for event in events)


def test_numbering_no_events_moves_nothing() -> None:
    assert facts.number([], 41, NOW) == 41


def test_takeover_starts_far_behind_whatever_earlier_attempts_can_have_published() -> None:
    bases = [facts.sequence_base(attempt) for attempt in range(1, 200)]
    assert bases == sorted(bases)
    assert all(after - before > 1_000_000_000 for before, after in pairwise(bases))


def test_sequences_of_very_many_attempts_fit_an_int64() -> None:
    assert facts.sequence_base(2**30) < 2**63
