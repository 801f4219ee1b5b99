"""Metrics of several replicas: each run counts once over all of them, and the queue is the same for all."""

from collections import Counter

import pytest

from famulus_server.embedded.upstream import Scene
from famulus_server.wiring import server as wiring
from replicas.conftest import OpenReplica
from run_stage import Stage
from scraping import scrape, scrape_until

pytestmark = pytest.mark.usefixtures("unhurried")


async def total(name: str, *stages: Stage) -> Counter[tuple[str, ...]]:
    """A counter, summed up as Prometheus does it."""
    summed = Counter[tuple[str, ...]]()
    for stage in stages:
        for labels, value in (await scrape(stage.metrics_address)).all(name).items():
            summed[labels] += int(value)
    return summed


async def test_run_counts_once_whoever_creates_executes_and_ends_it(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "_LOOK_SECONDS", 0.05)
    async with open_replica(server={"role": "api"}) as first, open_replica(server={"role": "api"}) as second:
        first.play(Scene(text="fine"))
        wanted = await first.wanted(request_id="again")
        executed = (await first.runs.CreateRun(wanted)).run
        assert (await second.runs.CreateRun(wanted)).run.id == executed.id
        cancelled = await second.start()
        # Nobody executes them yet.
        for stage in (first, second):
            found = await scrape_until(stage.metrics_address, lambda seen: seen.one("queue_runs") == 2)
            assert 0 < found.one("queue_oldest_seconds") < 60
            assert found.one("worker_slots") == 0
            assert found.one("store_connections", "idle") + found.one("store_connections", "busy") > 0
        for stage in (first, second):
            await stage.cancel(cancelled.id)
        async with open_replica(server={"role": "worker"}) as worker:
            await second.tell(executed.id)
            stages = (first, second, worker)
            assert await total("runs_created_total", *stages) == {("scripted", "default"): 2}
            assert await total("runs_ended_total", *stages) == {
                ("completed", "scripted", "scripted", "default"): 1,
                ("cancelled", "scripted", "", "default"): 1,
            }
            assert await total("run_queue_seconds", *stages) == {("default",): 1}
            for stage in stages:
                await scrape_until(stage.metrics_address, lambda seen: seen.all("queue_runs") == {(): 0})
