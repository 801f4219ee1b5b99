"""Batches of events, as the server packs them."""

from famulus.v1.run_event_pb2 import RunEvent, RunStateChanged, TextDelta
from famulus.v1.run_pb2 import Run, RunState
from famulus_server.engine.packing import pack
from famulus_server.ports import EventBatch


def delta(sequence: int, text: str = "x") -> RunEvent:
    """An event of text."""
    return RunEvent(sequence=sequence, text_delta=TextDelta(text=text))


def alone(event: RunEvent) -> EventBatch:
    """The event in a batch of its own."""
    [batch] = pack([event])
    return batch


def end(sequence: int) -> EventBatch:
    """The last event of a run."""
    ended = Run(state=RunState.RUN_STATE_COMPLETED)
    return alone(RunEvent(sequence=sequence, run_state_changed=RunStateChanged(run=ended)))


def deltas(*sequences: int, text: str = "x") -> list[EventBatch]:
    """Events of text, as when they come one by one."""
    return [alone(delta(sequence, text)) for sequence in sequences]
