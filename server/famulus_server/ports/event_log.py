"""The port to the tail of run events outside this process; it may be lost (contract 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of a run with consecutive sequences, from `first` to `last`, serialized once for all who keep them or send
    them on. `payload` is what StreamRunResponse and WatchRunResponse with these events are: payloads behind each other
    are a payload, too.

    `follows` is the last sequence that has to be there for the log to be whole: what an attempt takes back may be
    missing before it. `ends` says that nothing follows: the run has ended.
    """

    follows: int
    first: int
    last: int
    payload: bytes
    ends: bool

    @property
    def count(self) -> int:
        """How many events."""
        return self.last - self.first + 1


class EventLog(Protocol):
    """The tail of run events outside this process, for watchers elsewhere and for later. It may be lost at any time."""

    def publish(self, run_id: str, batches: Sequence[EventBatch]) -> None:
        """Appends events, soon and in order, and then hints at them (`events_topic`); returns at once. Losing them is
        no error. Behind a batch that `ends` the run its tail may expire after a while."""

    async def read(self, run_id: str, *, after_sequence: int, limit: int) -> list[EventBatch]:
        """What is there behind a sequence, in order, perhaps with a gap at the start; nothing where all is lost. The
        first batch may begin before the sequence, and each of them before the end of the one before."""

    async def read_many(self, cursors: Mapping[str, int], *, limit: int) -> Mapping[str, list[EventBatch]]:
        """What `read` gives of each run behind its sequence, at most `limit` batches each. Runs of which there is
        nothing are absent; a run with `limit` batches may have more."""

    def drop(self, run_id: str) -> None:
        """Removes the tail: its thread was deleted. What is published of the run later, here or elsewhere, is
        refused."""
