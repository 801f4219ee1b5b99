"""Replicas in processes of their own, for tests in which they say much."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from famulus_server.embedded.upstream import ScriptedUpstream
from killable_server import open_killable
from run_stage import Stage

# So long that nobody can have waited for it to run out, and no run of a slow process is taken over.
LONG_LEASE = {"lease_seconds": 600.0}


@asynccontextmanager
async def open_process(
    folder: Path, upstream: ScriptedUpstream, **settings: Any
) -> AsyncIterator[tuple[Stage, Process]]:
    """The same as `open_killable`, with a long lease. Its log is read: it would stand still once the pipe is full."""
    settings["worker"] = LONG_LEASE | settings.get("worker", {})
    async with open_killable(folder, upstream, **settings) as (stage, process):
        reading = asyncio.create_task(_read_all(process))
        try:
            yield stage, process
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read_all(process: Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(65_536):
        pass
