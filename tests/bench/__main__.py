"""`python -m bench`: how fast famulus is, beside what else there is. The last line is JSON."""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psutil

from bench import (
    calls,
    fleet,
    limiter,
    machine,
    pacing,
    profiles,
    report,
    starts,
    startup,
    streams,
    watches,
    windows,
)
from bench.plan import FULL, QUICK, TINY, Plan
from bench.results import Results
from bench.stage import Stage, open_stage

Measure = Callable[[Stage, Plan], Awaitable[Results]]
# The order in which they are measured: W7 uses the embedded server that W1 has warmed up.
WORKLOADS: Mapping[str, Measure] = {
    "W1": streams.measure,
    "W2": starts.measure,
    "W3": pacing.measure,
    "W4": watches.measure,
    "W5": calls.measure,
    "W6": windows.measure,
    "W7": fleet.measure,
    "W8": startup.measure,
    "limiter": limiter.measure,
    "profile": profiles.measure,
}
_PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"
_PLANS = {"full": FULL, "quick": QUICK, "tiny": TINY}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints what came out. The exit code is 0, whatever was reached, unless a workload failed."""
    asked = _arguments(arguments)
    # As Ctrl-C does: what was started must not be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    known = machine.describe(asked.litellm)
    cores = psutil.cpu_count() or 1
    results = asyncio.run(measure(asked.only or list(WORKLOADS), _PLANS[asked.plan], asked.litellm))
    for said in filter(None, (report.disturbed(results.cores, cores), *results.skipped)):
        print(f"*** {said} ***", file=sys.stderr)
    print(report.table(results, cores))
    if asked.write:
        report.write(results, known, f"make bench BENCH={asked.plan}", cores, _PAGE)
    print(report.line(results))
    return int(bool(results.failed))


async def measure(names: Sequence[str], plan: Plan, litellm: Path | None) -> Results:
    """What these workloads find out, with LiteLLM from the environment of this Python."""
    results = Results()
    with tempfile.TemporaryDirectory(prefix="famulus-bench-") as folder:
        async with open_stage(Path(folder), plan, litellm=litellm) as stage:
            for name in names:
                start = time.perf_counter()
                try:
                    results.add(await WORKLOADS[name](stage, plan))
                except Exception:  # noqa: BLE001 - what the others find out is not lost with it
                    results.failed.append(name)
                    traceback.print_exc()
                print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            if stage.missing:
                results.skipped.append(stage.missing)
    return results


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--plan", choices=sorted(_PLANS), default="full", help="how much; quick takes three minutes")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(WORKLOADS)}")
    parser.add_argument("--litellm", type=Path, help="the Python of an environment that has LiteLLM")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its charts")
    asked = parser.parse_args(arguments)
    for name in asked.only or ():
        if name not in WORKLOADS:
            parser.error(f"there is no {name!r}; there are {', '.join(WORKLOADS)}")
    if asked.litellm is not None and not asked.litellm.exists():
        asked.litellm = None
    return asked


if __name__ == "__main__":
    sys.exit(main())
