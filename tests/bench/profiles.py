"""Where a server spends its time, by py-spy."""

import asyncio
import re
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

from bench.calls import get_run_request
from bench.http2 import Connection
from bench.load import Load, in_batches, in_turn, rate
from bench.plan import Plan
from bench.results import Profile, Results
from bench.stage import Stage

_RATE = 250
_TOP = 10
_FRAME = re.compile(r"^(?P<function>.+) \((?P<file>.+?)(:\d+)?\)$")
_ROOTS = ("site-packages/", "server/", "tests/", "lib/python3")


async def measure(stage: Stage, plan: Plan) -> Results:
    """The functions in which famulus itself was most often, under W1, W2 and W5; what they call does not count.
    Threads count while they have the interpreter: the others wait."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        return Results(skipped=["There is NO profile: py-spy is not installed"])
    results, system, seconds = Results(), await stage.famulus(), plan.profile_seconds
    server = await stage.program()
    connection, request = await Connection.open(server.address), await get_run_request(server.address)

    async def call() -> None:
        await connection.ask(request)

    loads: dict[str, Awaitable[object]] = {
        "W1, 8 runs of 500 deltas at once": in_batches(
            system, stage.upstream, "many", at_once=8, seconds=seconds, load=Load()
        ),
        "W2, runs of one delta by 16 callers": in_turn(
            system, stage.upstream, "one", at_once=16, seconds=seconds, load=Load()
        ),
        "W5, GetRun by 16 callers": rate(call, at_once=16, seconds=seconds),
    }
    for title, load in loads.items():
        stacks = stage.folder / "stacks"
        recorder = await asyncio.create_subprocess_exec(
            *(program, "record", "--pid", str(server.process.pid), "--rate", str(_RATE), "--gil"),
            *("--duration", str(max(1, round(seconds))), "--format", "raw", "--output", str(stacks)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, (_, said) = await asyncio.gather(load, recorder.communicate())
        if recorder.returncode:
            results.skipped.append(f"There is NO profile: {said.decode(errors='replace').strip()[-300:]}")
            break
        results.profiles.append(Profile(title=title, functions=_top(stacks.read_text())))
    connection.close()
    return results


def _top(stacks: str) -> list[tuple[str, float]]:
    """Of stacks with their counts, the innermost functions."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        counts[_named(frames.split(";")[-1])] += int(count)
    total = counts.total()
    return [(name, count / total) for name, count in counts.most_common(_TOP)]


def _named(frame: str) -> str:
    """A function and its file, from its package on."""
    found = _FRAME.match(frame)
    if found is None:
        return frame
    file = found["file"]
    for root in _ROOTS:
        if root in file:
            file = file.rpartition(root)[2]
    return f"{found['function']} ({file})"
