"""What the demo measures, and what it finds wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import (
    RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS,
    RUN_STATE_COMPLETED,
    Run,
)
from famulus_server.cli.transcript import describe_end, state_of


@dataclass(kw_only=True)
class Findings:
    """Counted over all runs; times are in milliseconds, from the call to the client's side of it."""

    model: str
    ready_ms: float  # from the start of the command to a server that accepts calls
    runs: int = 0
    events: int = 0
    states: list[str] = field(default_factory=list)
    ttfe_ms: float | None = None
    first_text_ms: float | None = None
    resumed: bool = False
    cut_after: int = 0  # the sequence after which the stream was resumed
    tool_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """Now the first run is asked for."""
        self._started = time.perf_counter()

    @property
    def ok(self) -> bool:
        """Whether all was as it should be."""
        return not self.problems

    def check(self, holds: bool, problem: str) -> None:
        """Note the problem unless it holds."""
        if not holds:
            self.problems.append(problem)

    def see(self, event: RunEvent) -> None:
        """Count an event."""
        self.events += 1
        passed = round((time.perf_counter() - self._started) * 1_000, 1)
        if self.ttfe_ms is None:
            self.ttfe_ms = passed
        if self.first_text_ms is None and event.HasField("text_delta"):
            self.first_text_ms = passed
        if event.HasField("run_state_changed"):
            state = state_of(event.run_state_changed.run)
            if state not in self.states:
                self.states.append(state)

    def conclude(self, run: Run, *, sequences: Sequence[int], streamed: str, stored: str) -> None:
        """Count a run that has ended, and check it: events without gap or duplicate, and the text that is stored."""
        self.runs += 1
        self.prompt_tokens += run.usage.prompt_tokens
        self.completion_tokens += run.usage.completion_tokens
        # The small model seldom knows when to stop.
        at_limit = run.incomplete_reason == RUN_INCOMPLETE_REASON_MAX_COMPLETION_TOKENS
        self.check(run.state == RUN_STATE_COMPLETED or at_limit, f"run {self.runs} ended as {describe_end(run)}")
        self.check(
            list(sequences) == list(range(1, run.last_sequence + 1)),
            f"run {self.runs} has events 1 to {run.last_sequence}, these came: {list(sequences)}",
        )
        self.check(bool(stored) and streamed == stored, f"the text that run {self.runs} streamed is not what it stored")
        self.check(run.usage.total_tokens > 0, f"run {self.runs} used no tokens")

    def to_json(self) -> str:
        """All of it in one line."""
        return json.dumps({"ok": self.ok, **asdict(self)})
