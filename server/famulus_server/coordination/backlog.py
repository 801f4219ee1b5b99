"""What waits to be written to the event log: bounded, the oldest go first."""

from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from famulus_server.ports import EventBatch

# In events and bytes. More than this waiting means that Redis is away, or far too slow.
_MAX_EVENTS = 50_000
_MAX_BYTES = 64 * 1024 * 1024
# Streams to remove; those that are not removed expire.
_MAX_REMOVALS = 50_000
# What is written at a time: a few milliseconds of work for this process.
_BATCH_EVENTS = 1_000
_BATCH_BYTES = 1024 * 1024


class Entry(NamedTuple):
    """Events without a jump to append to a run's stream, which is then kept for so many seconds; None removes the
    stream.

    `again` tells that these may have been written before, `patient` that they may wait for what comes before them:
    another replica may be about to write it.
    """

    run_id: str
    batches: Sequence[EventBatch] | None
    seconds: int
    again: bool = False
    patient: bool = True

    def weigh(self) -> tuple[int, int]:
        """How many events, and how many bytes."""
        events = size = 0
        for batch in self.batches or ():
            events += batch.count
            size += len(batch.payload)
        return events, size


def entries_of(run_id: str, batches: Iterable[EventBatch], *, seconds: int, again: bool = False) -> Iterator[Entry]:
    """The events, in an Entry for each stretch without a jump. What is written again does not wait."""
    stretch: list[EventBatch] = []
    for batch in batches:
        if stretch and batch.first != stretch[-1].last + 1:
            yield Entry(run_id, stretch, seconds, again, patient=not again)
            stretch = []
        stretch.append(batch)
    if stretch:
        yield Entry(run_id, stretch, seconds, again, patient=not again)


class Backlog:
    """Entries in the order in which they came, removals first: what waits of a removed run is not wanted any more.
    `lost` counts the events that had to go; `incomplete` tells that some have gone since it was last reset."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._removals: OrderedDict[str, Entry] = OrderedDict()
        self._events = self._bytes = 0
        self.lost = 0
        self.incomplete = False

    def __len__(self) -> int:
        return len(self._entries) + len(self._removals)

    @property
    def events(self) -> int:
        """How many events wait."""
        return self._events

    def put(self, entry: Entry) -> None:
        """Adds an entry, and drops the oldest where there is no room."""
        if entry.batches is None:
            self._remove(entry)
            return
        self._entries.append(entry)
        self._count(entry, 1)
        self._bound()

    def take(self, *, held: Container[str]) -> list[Entry]:
        """Some of the oldest, as many as are written at a time. Those of the `held` runs stay."""
        taken = list(islice(self._removals.values(), _BATCH_EVENTS))
        removed = {entry.run_id for entry in taken}
        for run_id in removed:
            del self._removals[run_id]
        kept: list[Entry] = []
        # A removal is work, too.
        events, size = len(taken), 0
        while self._entries and events < _BATCH_EVENTS and size < _BATCH_BYTES:
            entry = self._entries.popleft()
            if entry.run_id in held:
                kept.append(entry)
                continue
            more_events, more_size = self._count(entry, -1)
            if entry.run_id in removed:
                continue
            taken.append(entry)
            events, size = events + more_events, size + more_size
        self._entries.extendleft(reversed(kept))
        return taken

    def put_back(self, entries: Sequence[Entry]) -> None:
        """What was taken, and may or may not have been written, is first in line again."""
        self.wait([entry._replace(again=True) for entry in entries])

    def wait(self, entries: Sequence[Entry]) -> None:
        """What was taken, and not written, is first in line again."""
        for entry in reversed(entries):
            if entry.batches is None:
                self._remove(entry)
                continue
            self._entries.appendleft(entry)
            self._count(entry, 1)
        self._bound()

    def give_up(self, entries: Sequence[Entry]) -> None:
        """What was taken will never be written."""
        self.lost += sum(entry.weigh()[0] for entry in entries)
        self.incomplete = True

    def starts(self) -> dict[str, int]:
        """Of each run of which events wait, the sequence that they follow; they go on without a gap."""
        starts: dict[str, int] = {}
        for entry in self._entries:
            if entry.batches:
                starts.setdefault(entry.run_id, entry.batches[0].follows)
        return starts

    def forget(self, run_ids: Container[str]) -> None:
        """Drops the events of these runs, which will be written from elsewhere."""
        kept = [entry for entry in self._entries if entry.run_id not in run_ids]
        self._entries = deque(kept)
        self._events = self._bytes = 0
        for entry in kept:
            self._count(entry, 1)

    def _count(self, entry: Entry, sign: int) -> tuple[int, int]:
        events, size = entry.weigh()
        self._events += sign * events
        self._bytes += sign * size
        return events, size

    def _remove(self, entry: Entry) -> None:
        self._removals[entry.run_id] = entry
        if len(self._removals) > _MAX_REMOVALS:
            self._removals.popitem(last=False)

    def _bound(self) -> None:
        while self._events > _MAX_EVENTS or self._bytes > _MAX_BYTES:
            oldest = self._entries.popleft()
            self.lost += self._count(oldest, -1)[0]
            self.incomplete = True
