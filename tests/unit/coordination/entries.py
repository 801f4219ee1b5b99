"""Entries, and a look at them."""

from collections.abc import Sequence

from famulus.v1.run_event_pb2 import RunEvent, TextDelta
from famulus_server.coordination.backlog import Entry
from famulus_server.engine.packing import pack
from famulus_server.ports import EventBatch


def deltas(*sequences: int, text: str = "x") -> list[EventBatch]:
    """Events, each a batch of its own: as when they come one by one."""
    events = (RunEvent(sequence=sequence, text_delta=TextDelta(text=text)) for sequence in sequences)
    return [batch for event in events for batch in pack([event])]


def sequences(entries: Sequence[Entry], run_id: str) -> list[int]:
    """The sequences of a run's events, in the order in which they would be written."""
    return [batch.last for entry in entries if entry.run_id == run_id for batch in entry.batches or ()]
