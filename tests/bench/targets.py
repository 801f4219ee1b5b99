"""The figures to reach, with everything on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """What a figure has to be. `per` says what it is."""

    key: str
    means: str
    bound: Literal["at least", "at most", "printed"]
    value: float = 0.0
    cores: int = 0
    """Processors without which it cannot be reached, whatever the software does."""

    def verdict(self, figures: Mapping[str, float], cores: int) -> str:
        """`reached`, `NOT reached`, or why neither can be said."""
        found = figures.get(self.key)
        if found is None:
            return "NOT measured"
        if self.bound == "printed":
            return ""
        if found >= self.value if self.bound == "at least" else found <= self.value:
            return "reached"
        return f"NOT reached; needs {self.cores} cores, here are {cores}" if cores < self.cores else "NOT reached"

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return "" if self.bound == "printed" else f"{self.bound} {self.value:,g}"


TARGETS = (
    Target("w1_events_per_s", "W1 8 runs of 500 deltas: deltas per second", "at least", 40_000),
    Target("w1_cpu_us_per_event", "W1 us of processors for a delta, Valkey included", "printed"),
    Target("w1_vs_litellm", "W1 times as many as LiteLLM", "at least", 20),
    Target("w1_vs_bare", "W1 times as many as the bare prototype", "at least", 0.5),
    Target("w2_ttfe_ms", "W2 ms to the first delta, one caller, p50", "printed"),
    Target("w2_ttfe_over_direct_ms", "W2 ms more than the SDK alone, one caller", "at most", 5),
    Target("w2_ttfe_over_direct_16_ms", "W2 ms more than the SDK alone, 16 callers", "at most", 5),
    Target("w2_cpu_ms_per_run", "W2 ms of processors for a run, the worse of 1 and 16", "at most", 5),
    Target("w2_runs_vs_litellm", "W2 times as many runs per second as LiteLLM", "at least", 5),
    Target("w3_p99_delay_ms", "W3 200 runs, a delta each 50 ms: ms of delay, p99", "at most", 50),
    Target("w3_cpu_cores", "W3 processors", "at most", 1),
    Target("w4_kib_per_stream", "W4 10,000 idle watches: KiB each", "at most", 60),
    Target("w4_unary_p99_ms", "W4 ms for another call meanwhile, p99", "at most", 20),
    Target("w5_vs_bare", "W5 GetThread and GetRun, the slower: times as many as the bare method", "at least", 0.5),
    Target("w6_growth_1000", "W6 start on 1,000 messages: times as long as on 10", "at most", 1.5),
    Target("w6_growth_10000", "W6 start on 10,000 messages: times as long as on 10", "at most", 1.5),
    Target("w7_two_vs_one", "W7 two replicas: times the runs per second of one", "at least", 1.7, cores=4),
    Target("w7_vs_embedded", "W7 one replica: times the embedded server, the worst of three", "at least", 0.8),
    Target("w8_start_s", "W8 seconds from the start to healthy", "at most", 3),
    Target("w8_installed_mb", "W8 MB installed", "printed"),
    Target("w8_packages", "W8 packages installed", "printed"),
)
