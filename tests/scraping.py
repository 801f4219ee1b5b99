"""Metrics as whoever scrapes them sees them."""

import asyncio
import http.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from famulus_server.ports.metrics import CATALOGUE

LABELS = {f"famulus_{metric.name}": metric.labels for metric in CATALOGUE}


@dataclass(frozen=True)
class Scrape:
    """One answer."""

    text: str

    @property
    def families(self) -> Mapping[str, Metric]:
        """What there is, by name; those of counters are without `_total`."""
        return {family.name: family for family in text_string_to_metric_families(self.text)}

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a metric, by its labels in the order of the catalogue; of a histogram, how many there were."""
        labels = LABELS[f"famulus_{name}"]
        wanted = {f"famulus_{name}", f"famulus_{name}_count"}
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name in wanted
        }

    def one(self, name: str, *labels: str) -> float:
        """One value, 0 where there is none yet."""
        return self.all(name).get(labels, 0.0)


async def scrape(address: str) -> Scrape:
    """Asks for the metrics."""
    status, _, body = await asyncio.to_thread(get, address)
    assert status == 200, body
    return Scrape(body)


async def scrape_until(address: str, wanted: Callable[[Scrape], bool]) -> Scrape:
    """Asks for the metrics until they are as wanted; the test's time-out ends it otherwise."""
    while not wanted(found := await scrape(address)):  # noqa: ASYNC110 - nobody tells when they are
        await asyncio.sleep(0.01)
    return found


def get(address: str, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()
