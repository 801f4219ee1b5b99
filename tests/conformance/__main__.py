"""`python -m conformance`: every scenario with the client of every language that is here. The last line is JSON."""

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import structlog

from conformance.languages import examine, find_languages, postgres_if_here
from conformance.scenario import ScenarioFile, all_scenarios
from conformance.trial import Broken, perform
from conformance.world import World

_AT_A_TIME = 2  # languages

Totals = Mapping[str, int]


def main() -> int:
    """The exit code: 0 if every transcript is what it should be."""
    asked = _arguments()
    # The servers are in this process, and what they log is not what is looked for here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    files = [file for file in all_scenarios() if not asked.scenario or file.name in asked.scenario]
    missing = set(asked.scenario) - {file.name for file in files}
    if missing:
        raise SystemExit(f"there is no scenario {', '.join(sorted(missing))}")
    if asked.record:
        asyncio.run(_record(files))
        return 0
    try:
        languages = asyncio.run(find_languages(asked.languages, say=click.echo))
    except LookupError as error:
        raise SystemExit(str(error)) from None
    if len(languages) == 1:
        totals = asyncio.run(_examine_one(*languages.popitem(), files))
    else:
        totals = asyncio.run(_examine_all(list(languages), files))
    click.echo(json.dumps(totals))
    return int(totals["failed"] > 0 or not totals["passed"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument(
        "--languages", type=lambda text: text.split(","), help="these only, as python,go; all must be here"
    )
    parser.add_argument("--scenario", action="append", default=[], help="this one only; may be given several times")
    parser.add_argument("--record", action="store_true", help="write what the Python client does as what is expected")
    return parser.parse_args()


async def _examine_one(language: str, runner: Path, files: Sequence[ScenarioFile]) -> Totals:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="famulus-") as folder, postgres_if_here(say=click.echo) as postgres:
        report = await examine(language, runner, files, Path(folder), postgres, say=click.echo)
    click.echo(f"{language}: {report.passed} passed, {report.failed} failed, {time.monotonic() - started:.0f} s")
    return {
        "languages": 1,
        "scenarios": len(files),
        "passed": report.passed,
        "failed": report.failed,
        "skipped": report.skipped,
    }


async def _examine_all(languages: Sequence[str], files: Sequence[ScenarioFile]) -> Totals:
    """Each language in a process of its own: one process cannot set up two databases at a time."""
    turns = asyncio.Semaphore(_AT_A_TIME)
    scenarios = [argument for file in files for argument in ("--scenario", file.name)]

    environ = {"GRPC_VERBOSITY": "ERROR", **os.environ}  # it would report each connection that is cut

    async def one(language: str) -> Totals:
        command = (sys.executable, "-m", "conformance", "--languages", language, *scenarios)
        async with turns:
            process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environ)
            assert process.stdout is not None
            last = b""
            async for line in process.stdout:
                click.echo(last, nl=False)
                last = line
            await process.wait()
        if not last.startswith(b"{"):
            click.echo(last)
            raise SystemExit(f"{language}: the suite itself failed")
        totals: Totals = json.loads(last)
        return totals

    all_totals = await asyncio.gather(*map(one, languages))
    # A scenario counts once for each language.
    names = ("languages", "scenarios", "passed", "failed", "skipped")
    return {name: sum(totals[name] for totals in all_totals) for name in names}


async def _record(files: Sequence[ScenarioFile]) -> None:
    runner = (await find_languages(["python"], say=click.echo))["python"]
    with tempfile.TemporaryDirectory(prefix="famulus-") as folder, postgres_if_here(say=click.echo) as postgres:
        async with World.opened(Path(folder), postgres) as world:
            for file in files:
                try:
                    outcome = await perform(world, runner, file)
                except Broken as error:
                    click.echo(f"{file.name}: NOT RECORDED: {error}")
                    continue
                file.record(tuple(outcome.lines))
                click.echo("\n".join([f"{file.name}: {len(outcome.lines)} lines", *outcome.wrong]))


if __name__ == "__main__":
    sys.exit(main())
