"""A look at entries."""

from collections.abc import Sequence

from famulus_server.coordination.backlog import Entry


def sequences(entries: Sequence[Entry], run_id: str) -> list[int]:
    """The sequences of a run's events, in the order in which they would be written."""
    return [batch.last for entry in entries if entry.run_id == run_id for batch in entry.batches or ()]
