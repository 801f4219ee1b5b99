"""The port to the tail of run events outside this process; it may be lost (contract 2)."""

from collections.abc import Sequence
from typing import Protocol

from famulus.v1.run_event_pb2 import RunEvent


class EventLog(Protocol):
    """The tail of run events outside this process, for watchers elsewhere and for later. It may be lost at any time."""

    def publish(self, run_id: str, events: Sequence[RunEvent]) -> None:
        """Appends events, soon and in order; returns at once. Losing them is no error."""

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[RunEvent]:
        """What is there behind a sequence, in order, perhaps with a gap at the start; nothing where all is lost."""

    def finish(self, run_id: str) -> None:
        """The run has ended: its tail may expire after a while."""

    def drop(self, run_id: str) -> None:
        """Removes the tail: its thread was deleted."""
