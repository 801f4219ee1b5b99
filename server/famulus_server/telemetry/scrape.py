"""The metrics of one replica at one moment, read as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from httpx2 import AsyncClient

# A replica with many models has some hundred kilobytes.
_MOST_BYTES = 16 * 1024 * 1024

Labels: TypeAlias = frozenset[tuple[str, str]]


class Unreachable(Exception):
    """A replica gave no metrics. The text says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """`series` are the samples by name and labels, `at` is in seconds of the monotonic clock."""

    at: float
    series: Mapping[str, Mapping[Labels, float]]

    def matching(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of that name that have these labels, each with all its labels."""
        wanted = labels.items()
        for found, value in self.series.get(name, {}).items():
            if wanted <= found:
                yield dict(found), value

    def total(self, name: str, **labels: str) -> float:
        """Their sum; 0 where there are none."""
        return sum(value for _, value in self.matching(name, **labels))

    def label(self, name: str, label: str) -> str:
        """What the one sample of an `..._info` metric says; empty where there is none."""
        return next((labels.get(label, "") for labels, _ in self.matching(name)), "")


async def scrape(client: AsyncClient, url: str) -> Scrape:
    """What the replica says now. Raises Unreachable."""
    import httpx2  # here, because `--help` needs no network

    try:
        async with client.stream("GET", url) as response:
            if response.status_code != httpx2.codes.OK:
                raise Unreachable(f"HTTP {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise Unreachable("too much to read")
    except httpx2.TimeoutException as error:
        raise Unreachable("no answer in time") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise Unreachable("no answer") from error
    return read(body.decode(errors="replace"), at=time.monotonic())


def read(text: str, *, at: float) -> Scrape:
    """An exposition in Prometheus's text format. Raises Unreachable for what is none."""
    from prometheus_client.parser import text_string_to_metric_families  # here, as above

    series: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise Unreachable("what it says are no metrics") from error
    return Scrape(at, series)
