"""What a panel of the dashboard is, and how it asks: of the replicas and models that the variables choose."""

from dataclasses import dataclass
from typing import Any

# What the variables of the dashboard choose.
HERE = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
VARIANT = f'{HERE},variant=~"$model"'
STREAMS = 'method=~"RunService/(WatchRun|StreamRun)"'
OURS = 'method!~"Health/.*|ServerReflection/.*"'


@dataclass(frozen=True)
class Panel:
    """One graph, or one number. `queries` are expressions by what the legend says of their series."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    width: int = 8
    number: bool = False
    stacked: bool = False
    most: float | None = None


def number(title: str, description: str, unit: str, query: str, **more: Any) -> Panel:
    return Panel(title, description, unit, {"": query}, width=4, number=True, **more)


def rate(name: str, by: str = "", where: str = HERE) -> str:
    """How much a counter grows in a second."""
    return f"sum{f' by ({by})' if by else ''} (rate(famulus_{name}{{{where}}}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = "", where: str = HERE) -> str:
    """What this share of the values of a histogram stays below."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, sum by ({labels}) (rate(famulus_{name}_bucket{{{where}}}[$__rate_interval])))"


def quantiles(name: str, where: str = HERE) -> dict[str, str]:
    return {f"p{share * 100:g}": quantile(share, name, where=where) for share in (0.5, 0.95, 0.99)}


def now(name: str, how: str = "sum", by: str = "", where: str = HERE) -> str:
    """A gauge of all replicas together."""
    return f"{how}{f' by ({by})' if by else ''} (famulus_{name}{{{where}}})"
