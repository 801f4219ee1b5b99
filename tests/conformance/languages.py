"""The clients that are here, and what the suite says of each."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conformance import transcript
from conformance.scenario import CLIENTS, ScenarioFile
from conformance.trial import Broken, is_usable, perform
from conformance.world import World
from postgres import PostgresMissing, PostgresServer

Say = Callable[[str], object]


@dataclass
class Report:
    """What came of all scenarios with one client."""

    language: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    differences: dict[str, str] = field(default_factory=dict)


def runners() -> Mapping[str, Path]:
    """The runners that are in the checkout, by language; they need not be built."""
    return {path.parents[1].name: path for path in sorted(CLIENTS.glob("*/conformance/runner"))}


async def find_languages(asked: Sequence[str] | None, *, say: Say) -> dict[str, Path]:
    """The runners that can be started. Those asked for must be among them, or LookupError is raised; of others it is
    said that they are skipped."""
    there = runners()
    usable = {}
    for language in there if asked is None else asked:
        problem = await is_usable(there[language]) if language in there else "there is no runner"
        if not problem:
            usable[language] = there[language]
        elif asked is not None:
            raise LookupError(f"{language}: {problem}")
        else:
            say(f"SKIPPED, {language}: its runner does not start: {problem}")
    return usable


@contextmanager
def postgres_if_here(*, say: Say) -> Iterator[PostgresServer | None]:
    """A PostgreSQL server for the scenarios with replicas."""
    try:
        server = PostgresServer()
    except PostgresMissing as missing:
        say(f"SKIPPED, scenarios with replicas: {missing}")
        yield None
        return
    with server:
        yield server


async def examine(
    language: str,
    runner: Path,
    files: Sequence[ScenarioFile],
    folder: Path,
    postgres: PostgresServer | None,
    *,
    say: Say,
) -> Report:
    """Runs scenarios with a runner, one after the other, on servers of its own in a folder."""
    report = Report(language)
    async with World.opened(folder, postgres) as world:
        for file in files:
            if file.scenario.server == "replicas" and postgres is None:
                report.skipped += 1
                say(f"{language} {file.name}: SKIPPED")
                continue
            started = time.monotonic()
            difference = await _difference(world, runner, file)
            verdict = f"{language} {file.name}, {time.monotonic() - started:.1f} s"
            if difference:
                report.failed += 1
                report.differences[file.name] = difference
            else:
                report.passed += 1
            say(f"{verdict}: FAILED\n{difference}" if difference else f"{verdict}: passed")
    return report


async def _difference(world: World, runner: Path, file: ScenarioFile) -> str:
    """What is wrong with what a runner makes of a scenario; empty where nothing is."""
    try:
        outcome = await perform(world, runner, file)
    except (Broken, transcript.Unreadable) as error:
        return f"the runner failed: {error}"
    return "\n".join([*outcome.wrong, transcript.difference(file.scenario.expected, outcome.lines)]).strip()
