"""What an execution knows of its run."""

from dataclasses import dataclass, field
from datetime import datetime

from famulus.v1.run_pb2 import Run
from famulus_server.engine.control import Control
from famulus_server.engine.feed import RunLog
from famulus_server.engine.packing import Packer
from famulus_server.ports import Remembered, Span, Turn


@dataclass(slots=True)
class Progress:
    """A run at work. `sequence` is that of the last event published; `thread` is what is in its thread, where that is
    known."""

    tenant: str
    run: Run
    log: RunLog
    control: Control
    sequence: int
    span: Span
    thread: Remembered | None
    turns: list[Turn] = field(default_factory=list)
    next_position: int = 1
    call_ids: set[str] = field(default_factory=set)
    avoid: set[str] = field(default_factory=set)
    """Models that broke off an answer to the turn under way."""

    def packer(self, now: datetime) -> Packer:
        """For what is published next."""
        return Packer(last_sequence=self.sequence, now=now)

    def seconds_left(self, now: datetime) -> float:
        """Until the run expires."""
        return (self.run.expire_time.ToDatetime(now.tzinfo) - now).total_seconds()
