"""`python -m conformance`: every scenario with the client of every language that is here. The last line is JSON."""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import structlog

from conformance.languages import Report, examine, find_languages
from conformance.scenario import ScenarioFile, all_scenarios
from conformance.trial import Broken, perform
from conformance.world import World
from postgres import PostgresMissing, PostgresServer

_AT_A_TIME = 2  # languages


def main() -> int:
    """The exit code: 0 if every transcript is what it should be."""
    asked = _arguments()
    # The servers are in this process, and what they log is not what is looked for here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    files = [file for file in all_scenarios() if not asked.scenario or file.name in asked.scenario]
    missing = set(asked.scenario) - {file.name for file in files}
    if missing:
        click.echo(f"there is no scenario {', '.join(sorted(missing))}", err=True)
        return 2
    with ExitStack() as stack:
        postgres = _postgres(stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="famulus-conf-")))
        if asked.record:
            asyncio.run(_record(files, folder, postgres))
            return 0
        reports = asyncio.run(_examine_all(asked.languages, files, folder, postgres))
    totals = {
        "languages": len(reports),
        "scenarios": len(files),
        "passed": sum(report.passed for report in reports),
        "failed": sum(report.failed for report in reports),
        "skipped": sum(report.skipped for report in reports),
    }
    click.echo(json.dumps(totals))
    return int(totals["failed"] > 0 or not totals["passed"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("--languages", type=lambda text: text.split(","), help="these only, as python,go; all must be here")
    parser.add_argument("--scenario", action="append", default=[], help="this one only; may be given several times")
    parser.add_argument("--record", action="store_true", help="write what the Python client does as what is expected")
    return parser.parse_args()


async def _examine_all(
    asked: list[str] | None, files: list[ScenarioFile], folder: Path, postgres: PostgresServer | None
) -> list[Report]:
    languages = await find_languages(asked, say=click.echo)
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def one(language: str, runner: Path) -> Report:
        async with turns:
            started = time.monotonic()
            report = await examine(language, runner, files, folder / language, postgres, say=click.echo)
            click.echo(f"{language}: {report.passed} passed, {report.failed} failed, {time.monotonic() - started:.0f} s")
            return report

    return await asyncio.gather(*(one(*language) for language in languages.items()))


async def _record(files: list[ScenarioFile], folder: Path, postgres: PostgresServer | None) -> None:
    runner = (await find_languages(["python"], say=click.echo))["python"]
    async with World.opened(folder, postgres) as world:
        for file in files:
            try:
                outcome = await perform(world, runner, file)
            except Broken as error:
                click.echo(f"{file.name}: NOT RECORDED: {error}")
                continue
            file.record(tuple(outcome.lines))
            click.echo("\n".join([f"{file.name}: {len(outcome.lines)} lines", *outcome.wrong]))


def _postgres(stack: ExitStack) -> PostgresServer | None:
    try:
        return stack.enter_context(PostgresServer())
    except PostgresMissing as missing:
        click.echo(f"SKIPPED, scenarios with replicas: {missing}")
        return None


if __name__ == "__main__":
    sys.exit(main())
