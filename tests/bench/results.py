"""What a workload finds out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Chart:
    """How something grows, for several systems: one value for each step, None where there is none."""

    name: str
    title: str
    x: str
    y: str
    steps: Sequence[str]
    lines: Mapping[str, Sequence[float | None]]
    bars: bool = False
    """The steps are things, not sizes."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """In which functions a process was, most often first, and in what share of the samples."""

    title: str
    functions: Sequence[tuple[str, float]]


@dataclass(kw_only=True)
class Results:
    """Figures by their keys; what else is told beside them."""

    figures: dict[str, float] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    cores: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Who was busy: for each situation the processors that each part used."""
    profiles: list[Profile] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Names of workloads that ended with an error."""

    def add(self, other: "Results") -> None:
        """Takes over what another workload found out."""
        self.figures |= other.figures
        self.charts += other.charts
        self.cores |= other.cores
        self.profiles += other.profiles
        self.skipped += other.skipped
        self.failed += other.failed
