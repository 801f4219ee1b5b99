"""What this process remembers of its runs, written again to a Redis that may have forgotten it."""

from collections.abc import Iterable, Mapping, Sequence

from famulus_server.coordination.backlog import Entry, entries_of
from famulus_server.ports import EventBatch

# What is written again at a time: newer events of other runs come in between.
_BATCH_EVENTS = 500
_BATCH_BYTES = 512 * 1024


class Replay:
    """The events that are still to be written again, by run. While a run is `in` it, nothing newer of it may be
    written."""

    def __init__(self, *, active_seconds: int, ended_seconds: int) -> None:
        self._active_seconds = active_seconds
        self._ended_seconds = ended_seconds
        self._runs: dict[str, Sequence[EventBatch]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def start(self, memory: Mapping[str, Sequence[EventBatch]], tails: Mapping[str, int]) -> None:
        """From now on: of each run, what comes behind the last sequence that is there already."""
        self._runs = {}
        for run_id, batches in memory.items():
            tail = tails.get(run_id, 0)
            missing = [batch for batch in batches if batch.last > tail]
            if missing:
                self._runs[run_id] = missing

    def forget(self, run_id: str) -> None:
        """Nothing of the run is to be written."""
        self._runs.pop(run_id, None)

    def clear(self) -> None:
        """Nothing at all is to be written."""
        self._runs = {}

    def take(self) -> list[Entry]:
        """Some of it."""
        taken: list[Entry] = []
        events = size = 0
        while self._runs and events < _BATCH_EVENTS and size < _BATCH_BYTES:
            run_id = next(iter(self._runs))
            missing = self._runs.pop(run_id)
            count, weight = _fit(missing, most=_BATCH_EVENTS - events, size=_BATCH_BYTES - size)
            if count < len(missing):
                self._runs[run_id] = missing[count:]
            taken.extend(entries_of(run_id, missing[:count], seconds=self._seconds(missing[-1]), again=True))
            events += sum(batch.count for batch in missing[:count])
            size += weight
        return taken

    def _seconds(self, last: EventBatch) -> int:
        return self._ended_seconds if last.ends else self._active_seconds


def _fit(batches: Iterable[EventBatch], *, most: int, size: int) -> tuple[int, int]:
    """How many batches, and their bytes: with no more than `most` events and `size` bytes but for the last."""
    count = events = weight = 0
    for batch in batches:
        count += 1
        events += batch.count
        weight += len(batch.payload)
        if events >= most or weight >= size:
            break
    return count, weight
