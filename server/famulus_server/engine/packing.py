"""Events of a run in batches: each event is serialized once, for memory, for the EventLog and for all watchers."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_service_pb2 import WatchRunResponse
from famulus_server.engine import lifecycle
from famulus_server.engine.clock import timestamp
from famulus_server.ports import EventBatch

# A batch that has so much gets no more events: it is not cut when it is sent, unless in the middle for a late watcher.
_FULL_BYTES = 128 * 1024


def pack(events: Iterable[RunEvent]) -> list[EventBatch]:
    """Numbered events; a new batch begins at each jump."""
    packed: list[EventBatch] = []
    response, size, expected = WatchRunResponse(), 0, 0
    for event in events:
        if response.events and (event.sequence != expected or size >= _FULL_BYTES):
            packed.append(_batch(response))
            response, size = WatchRunResponse(), 0
        response.events.append(event)
        size += event.ByteSize()
        expected = event.sequence + 1
    if response.events:
        packed.append(_batch(response))
    return packed


def unpack(payload: bytes) -> EventBatch:
    """The batch with this payload. Raises ValueError for what is none, and DecodeError."""
    events = WatchRunResponse.FromString(payload).events
    if not events or events[-1].sequence - events[0].sequence != len(events) - 1:
        raise ValueError("not a batch of events")
    return _around(events, payload)


def events_of(batches: Iterable[EventBatch]) -> list[RunEvent]:
    """The events one by one."""
    return [event for batch in batches for event in WatchRunResponse.FromString(batch.payload).events]


def fresh(batches: Sequence[EventBatch], last_sequence: int) -> list[EventBatch]:
    """What is behind a sequence, and not twice."""
    found: list[EventBatch] = []
    for batch in batches:
        if batch.last > last_sequence:
            found.append(batch if batch.first > last_sequence else _cut(batch, last_sequence))
            last_sequence = batch.last
    return found


def fitting(batches: Sequence[EventBatch], max_bytes: int) -> Sequence[EventBatch]:
    """The first of them that have at most so many bytes together, one at least."""
    size = 0
    for number, batch in enumerate(batches):
        size += len(batch.payload)
        if size > max_bytes:
            return batches[: max(1, number)]
    return batches


class Packer:
    """Gives events a time and the sequences behind `last_sequence`, in the order of the calls (contract 11)."""

    def __init__(self, *, last_sequence: int, now: datetime) -> None:
        self._sequence = last_sequence
        self._moment = timestamp(now)
        self._packed: list[EventBatch] = []
        self._response = WatchRunResponse()
        self._room = _FULL_BYTES

    def add(self, event: RunEvent) -> None:
        """Adds an event, and numbers it."""
        event.event_time.CopyFrom(self._moment)
        self._append(event, event.ByteSize())

    def add_texts(self, message_id: str, part_index: int, texts: Iterable[str]) -> None:
        """Adds a TextDelta for each."""
        # One event for all: making each anew takes three times as long.
        event = RunEvent(event_time=self._moment)
        delta = event.text_delta
        delta.message_id, delta.part_index = message_id, part_index
        for text in texts:
            delta.text = text
            self._append(event, len(text))

    def close(self) -> list[EventBatch]:
        """All that was added."""
        if self._response.events:
            self._packed.append(_batch(self._response))
        return self._packed

    def _append(self, event: RunEvent, size: int) -> None:
        if self._room <= 0:
            self._packed.append(_batch(self._response))
            self._response, self._room = WatchRunResponse(), _FULL_BYTES
        self._room -= size
        self._sequence += 1
        event.sequence = self._sequence
        self._response.events.append(event)


def _cut(batch: EventBatch, last_sequence: int) -> EventBatch:
    """The part of a batch that is behind a sequence in it."""
    response = WatchRunResponse.FromString(batch.payload)
    del response.events[: last_sequence - batch.first + 1]
    return _batch(response)


def _batch(response: WatchRunResponse) -> EventBatch:
    return _around(response.events, response.SerializeToString())


def _around(events: Sequence[RunEvent], payload: bytes) -> EventBatch:
    first, last = events[0], events[-1]
    follows = first.sequence - 1
    if first.HasField("attempt_started"):
        follows = min(first.attempt_started.discards_after_sequence, follows)
    return EventBatch(follows, first.sequence, last.sequence, payload, _is_last(last))


def _is_last(event: RunEvent) -> bool:
    return event.HasField("run_state_changed") and event.run_state_changed.run.state in lifecycle.FINAL
