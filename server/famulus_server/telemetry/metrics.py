"""What this process has measured, until somebody looks."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from famulus_server.ports.metrics import CATALOGUE, Counter, Gauge, Histogram, Values

# Of one metric. Whatever comes beyond is a fault of ours, and must not become one of whoever keeps the numbers.
_MOST_CHILDREN = 1_000
_OTHER = "other"


@dataclass(slots=True)
class Spread:
    """The values of one histogram: how many fell into each of its buckets and behind the last, and their sum."""

    counts: list[int]
    total: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything as of one moment; nobody changes it."""

    values: Mapping[Counter | Gauge, Values] = field(default_factory=dict)
    spreads: Mapping[Histogram, Mapping[tuple[str, ...], Spread]] = field(default_factory=dict)


class Measurements:
    """See `ports.Metrics`. Plain numbers, since every call passes here; how they are shown is up to whoever looks."""

    def __init__(self, *, most_children: int = _MOST_CHILDREN) -> None:
        self._most_children = most_children
        # What has no labels is known from the start to be 0.
        self._counts: dict[Counter, dict[tuple[str, ...], float]] = {
            metric: {} if metric.labels else {(): 0.0} for metric in CATALOGUE if isinstance(metric, Counter)
        }
        self._spreads: dict[Histogram, dict[tuple[str, ...], Spread]] = {
            metric: {} if metric.labels else {(): _empty(metric)}
            for metric in CATALOGUE
            if isinstance(metric, Histogram)
        }
        self._readers: list[tuple[Counter | Gauge, Callable[[], Values]]] = []

    def add(self, counter: Counter, *labels: str, amount: float = 1.0) -> None:
        children = self._counts[counter]
        count = children.get(labels)
        if count is None:
            if len(children) >= self._most_children:
                labels = (_OTHER,) * len(labels)
            count = children.get(labels, 0.0)
        children[labels] = count + amount

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        children = self._spreads[histogram]
        spread = children.get(labels)
        if spread is None:
            if len(children) >= self._most_children:
                labels = (_OTHER,) * len(labels)
            spread = children.setdefault(labels, _empty(histogram))
        spread.counts[bisect_left(histogram.buckets, value)] += 1
        spread.total += value

    def show(self, metric: Counter | Gauge, read: Callable[[], Values]) -> None:
        self._readers.append((metric, read))

    def snapshot(self) -> Snapshot:
        """Call it in the event loop that everything else happens in."""
        values: dict[Counter | Gauge, dict[tuple[str, ...], float]] = {
            metric: dict(self._counts[metric]) if isinstance(metric, Counter) else {}
            for metric in CATALOGUE
            if not isinstance(metric, Histogram)
        }
        for metric, read in self._readers:
            values[metric].update(read())
        spreads = {
            metric: {labels: Spread(list(one.counts), one.total) for labels, one in children.items()}
            for metric, children in self._spreads.items()
        }
        return Snapshot(values=values, spreads=spreads)


def _empty(histogram: Histogram) -> Spread:
    return Spread([0] * (len(histogram.buckets) + 1))
