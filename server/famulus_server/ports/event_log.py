"""The port to the tail of run events outside this process; it may be lost (contract 2)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from famulus.v1.run_event_pb2 import RunEvent


class EventLog(Protocol):
    """The tail of run events outside this process, for watchers elsewhere and for later. It may be lost at any time."""

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Appends events, soon and in order, and then hints at them (`events_topic`); returns at once. Losing them is
        no error."""

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        """What is there behind a sequence, in order, perhaps with a gap at the start; nothing where all is lost."""

    async def read_many(self, cursors: Mapping[str, int], *, limit: int) -> Mapping[str, list[RunEvent]]:
        """What `read` gives of each run behind its sequence, at most `limit` events each. Runs of which there is
        nothing are absent; a run with `limit` events may have more."""

    def finish(self, run_id: str) -> None:
        """The run has ended: its tail may expire after a while."""

    def drop(self, run_id: str) -> None:
        """Removes the tail: its thread was deleted. What is published of the run later, here or elsewhere, is
        refused."""
