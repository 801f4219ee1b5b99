"""`python -m monitoring FOLDER`: draws panels of the dashboard, by its own queries, over minutes of load in which the
larger of two models is down for a while."""

import argparse
import asyncio
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from monitoring.dashboard import Query, panels, queries
from monitoring.drawing import Chart, Points, drawn
from monitoring.load import Load
from monitoring.prometheus import Prometheus, open_prometheus
from monitoring.world import open_world
from postgres import PostgresServer

# What the pictures are called, and the panels that they are of.
CHARTS = {
    "runs": "Runs ended, by state",
    "success": "Success rate",
    "first-word": "Time to the first word",
    "models": "Calls of models, by result",
    "breakers": "Breakers",
    "slots": "Slots",
    "limits": "Refused by limits",
    "cost": "Cost in an hour, by model",
    "database": "Time of units of work",
}
CALLERS = 8
# The outage begins at two fifths of the time and ends at three fifths.
OUTAGE = (0.4, 0.6)
_INTERVAL = "15s"
_STEP_SECONDS = 2.0


@dataclass(frozen=True)
class Trial:
    """When the load began and ended, in seconds since 1970, and the outage."""

    began: float
    ended: float
    outage: tuple[float, float]


def main() -> None:
    """Draws all charts into a folder."""
    parser = argparse.ArgumentParser(prog="monitoring", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="famulus-charts-") as folder, PostgresServer() as postgres:
        charts = asyncio.run(conduct(Path(folder), postgres, asked.seconds))
    for name, chart in zip(CHARTS, charts, strict=True):
        path = asked.folder / f"{name}.svg"
        path.write_text(drawn(chart), encoding="utf-8")
        click.echo(f"{path}: {chart.title}, {len(chart.lines)} lines")


async def conduct(folder: Path, postgres: PostgresServer, seconds: float) -> list[Chart]:
    """The load, and what the dashboard shows of it."""
    async with open_world(folder, postgres.create_database()) as world:
        with open_prometheus(folder, world.metrics) as prometheus:
            load = Load(world.stage)
            await load.prepare()
            began = time.time()
            await load.run(CALLERS, seconds * OUTAGE[0])
            failed = time.time()
            world.fail()
            await load.run(CALLERS, seconds * (OUTAGE[1] - OUTAGE[0]))
            world.work()
            repaired = time.time()
            await load.run(CALLERS, seconds * (1 - OUTAGE[1]))
            trial = Trial(began, time.time(), (failed, repaired))
            return [charted(prometheus, panel, trial) for panel in CHARTS.values()]


def charted(prometheus: Prometheus, panel: str, trial: Trial) -> Chart:
    """One panel of the dashboard, over the time of the trial."""
    [described] = [each for each in panels() if each["title"] == panel]
    lines: dict[str, Points] = {}
    for query in queries():
        if query.panel == panel:
            lines |= asked(prometheus, query, trial)
    begin, end = (moment - trial.began for moment in trial.outage)
    marked = [(begin, end, "the model “large” is down")]
    return Chart(panel, described["fieldConfig"]["defaults"]["unit"], lines, trial.ended - trial.began, marked)


def asked(prometheus: Prometheus, query: Query, trial: Trial) -> dict[str, Points]:
    """The lines of one query, by what the legend calls them."""
    expression = query.asked(interval=_INTERVAL, span=_INTERVAL)
    series = prometheus.ask_range(expression, trial.began, trial.ended, _STEP_SECONDS)
    return {
        query.label(each["metric"]): [
            (moment - trial.began, float(value)) for moment, value in each["values"] if math.isfinite(float(value))
        ]
        for each in series
    }


if __name__ == "__main__":
    main()
