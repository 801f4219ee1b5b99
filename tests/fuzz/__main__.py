"""Fuzzes all targets, FUZZ_JOBS (one per core) side by side: `python -m fuzz SECONDS [TARGET ...]`. Fails
when an input does."""

import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fuzz import targets

_COVERAGE = re.compile(r"cov: (\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units: (\d+)")
_LAST_LINES = 40


def main(seconds: int, names: Sequence[str]) -> bool:
    """Gives the targets, or those of these names, so many seconds in all; whether none failed."""
    chosen = names or [module.name for module in pkgutil.iter_modules(targets.__path__)]
    jobs = min(int(os.environ.get("FUZZ_JOBS") or os.cpu_count() or 1), len(chosen))
    each = max(1, seconds * jobs // len(chosen))
    with ThreadPoolExecutor(jobs) as threads:
        return all([*threads.map(partial(_fuzz, each), chosen)])


def _fuzz(seconds: int, name: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="famulus-fuzz-") as folder:
        command = [sys.executable, "-m", "fuzz.child", name, str(seconds), folder]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        failed = sorted(Path(folder).glob("failed-*"))
        said = ended.stdout + ended.stderr
        coverage = [int(found) for found in _COVERAGE.findall(said)] or [0]
        executions = _EXECUTIONS.search(said)
        print(
            f"{name}: {executions[1] if executions else '?'} executions in {seconds} s,"
            f" coverage {coverage[0]} by the seeds, {coverage[-1]} in the end",
            flush=True,
        )
        for path in failed:
            print(f"{name}: failed with {path.read_bytes()!r}")
    if ended.returncode:
        print("\n".join(said.splitlines()[-_LAST_LINES:]), flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]), sys.argv[2:]))
