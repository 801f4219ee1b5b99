"""Comparing what watchers of one run saw through different replicas."""

from collections.abc import Sequence

from famulus.v1.run_event_pb2 import RunEvent
from validator import validate_stream


def check_agreement(events: Sequence[RunEvent], whole: Sequence[RunEvent]) -> None:
    """Raises AssertionError unless a stream from its first event is valid and tells the same as the whole log, but for
    a Snapshot in place of what the event log did not have yet, or did not give in time."""
    validate_stream(events)
    told = {event.sequence: event for event in whole}
    for event in events:
        assert event.HasField("snapshot") or event == told[event.sequence], f"told otherwise:\n{event}"
    assert events[-1].sequence == whole[-1].sequence
