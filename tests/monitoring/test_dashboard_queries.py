"""All that dashboard and rules ask is answered by a real Prometheus that scraped servers under load."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from monitoring.dashboard import Query, dashboard, queries
from monitoring.load import Load
from monitoring.prometheus import Prometheus, open_prometheus
from monitoring.rules import ROOT, alerts, program, records
from monitoring.world import World, open_world
from postgres import PostgresServer

CALLERS = 4
# Long enough that all rates have two scrapes of each series, and short enough that nobody waits for it.
PHASE_SECONDS = 3.0


PAGES = ("docs/metrics.md", "docs/monitoring.md", "docs/runbooks.md")


def documented() -> list[str]:
    """The queries that pages name, each once; what is indented, or begins with an operator, goes on with it."""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```promql\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(query.strip() for block in blocks for query in re.split(r"\n(?![ )/-])", block.strip())))


@dataclass(frozen=True)
class Seen:
    """Prometheus after the load, and a moment at which the servers still ran."""

    prometheus: Prometheus
    at: float


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Seen]:
    """All faults that the metrics tell of are provoked: a model that refuses and fails, Redis and the database away."""
    program("prometheus")  # or a skip, before anything is started
    folder = tmp_path_factory.mktemp("monitoring")
    with ExitStack() as stack:

        async def live() -> Seen:
            async with open_world(folder, postgres_server.create_database()) as world:
                prometheus = stack.enter_context(open_prometheus(folder, world.metrics))
                await suffer(world, postgres_server)
                return Seen(prometheus, time.time())

        yield asyncio.run(live())


async def suffer(world: World, postgres: PostgresServer) -> None:
    load = Load(world.stage)
    await load.prepare()
    for story in load.stories:
        await load.tell(story)
    await load.run(CALLERS, PHASE_SECONDS)
    world.limit(times=4)
    await load.run(CALLERS, 1.0)
    world.fail()
    await load.run(CALLERS, PHASE_SECONDS)
    await world.valkey.kill()
    await asyncio.to_thread(postgres.stop)
    await load.run(CALLERS, 2.0)
    await asyncio.to_thread(postgres.start)
    await load.run(CALLERS, PHASE_SECONDS)
    await world.valkey.start()
    world.work()
    await load.run(CALLERS, PHASE_SECONDS)


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}, {query.legend}")
def test_dashboard_shows_something(seen: Seen, query: Query) -> None:
    found = seen.prometheus.ask(query.asked(interval="20s", span="1m"), seen.at)
    assert found, query.expression
    assert any(series["value"][1] != "NaN" for series in found), found


@pytest.mark.parametrize("name", records())
def test_rule_records_something(seen: Seen, name: str) -> None:
    assert seen.prometheus.ask(name, seen.at)


@pytest.mark.parametrize("name", alerts())
def test_alert_has_something_to_compare(seen: Seen, name: str) -> None:
    # `bool` has a comparison tell 0 or 1, in place of nothing.
    compared = re.sub(r"\s(==|>) ", r" \1 bool ", alerts()[name]["expr"])
    assert seen.prometheus.ask(compared, seen.at), compared


@pytest.mark.parametrize("query", documented())
def test_query_of_a_page_is_answered(seen: Seen, query: str) -> None:
    assert seen.prometheus.ask(query, seen.at)


def test_prometheus_runs_all_rules_without_an_error(seen: Seen) -> None:
    rules = [rule for group in seen.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == alerts().keys() | records().keys()
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_variables_of_the_dashboard_have_values(seen: Seen) -> None:
    asked = {each["name"]: each["definition"] for each in dashboard()["templating"]["list"] if "definition" in each}
    # Outside Kubernetes there are no namespaces.
    assert asked.pop("namespace")
    for name, definition in asked.items():
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", definition)
        assert found, definition
        series = re.sub(r"\$\w+", ".*", found[1])
        assert seen.prometheus.ask(f'count by ({found[2]}) ({{__name__!="",{found[2]}!=""}} and {series})', seen.at), (
            name
        )
