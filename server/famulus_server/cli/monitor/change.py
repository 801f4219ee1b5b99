"""What happened between two scrapes of one replica, and quantiles over several replicas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from famulus_server.telemetry.scrape import Labels, Scrape

_START = "process_start_time_seconds"


@dataclass(frozen=True, slots=True)
class Change:
    """From one scrape to a later one. A counter that is lower than before began anew meanwhile."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.after.at - self.before.at

    def rate(self, name: str, **labels: str) -> float:
        """By how much the counters of that name with these labels rose, per second."""
        return sum(rise for _, rise in self._each(name, labels)) / self.seconds

    def rises(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """By how much they rose in all, for each value of a label."""
        rises: dict[str, float] = {}
        for found, rise in self._each(name, labels):
            value = found.get(label, "")
            rises[value] = rises.get(value, 0.0) + rise
        return rises

    def _each(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        earlier: Mapping[Labels, float] = {} if self._restarted else self.before.series.get(name, {})
        for found, value in self.after.matching(name, **labels):
            was = earlier.get(frozenset(found.items()), 0.0)
            yield found, value - was if value >= was else value

    @property
    def _restarted(self) -> bool:
        return self.before.total(_START) != self.after.total(_START)


def quantile(share: float, name: str, changes: Iterable[Change]) -> float | None:
    """Below what this share of the observations of a histogram lay, over all replicas, as Prometheus's
    histogram_quantile estimates it; None where there were none."""
    below: dict[float, float] = {}
    for change in changes:
        for text, rise in change.rises(f"{name}_bucket", "le").items():
            bound = float(text)
            below[bound] = below.get(bound, 0.0) + rise
    bounds = sorted(below)
    if not bounds or not below[bounds[-1]]:
        return None
    wanted = share * below[bounds[-1]]
    lower = count_below = 0.0
    for bound in bounds:
        count = below[bound]
        if count >= wanted:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - count_below) / (count - count_below)
        lower, count_below = bound, count
    return lower
