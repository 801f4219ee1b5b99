"""A replica in a process of its own that kills itself at a point. Such processes are forked from one that has imported
everything: importing takes longer than all that a test does with them."""

import asyncio
import multiprocessing
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.wiring.server import open_server
from replicas.crash_points import CrashPoint, arm
from run_stage import Stage, stage_on, stage_settings

_FORKS = multiprocessing.get_context("forkserver")
# What the server imports when it first asks a model included.
_FORKS.set_forkserver_preload(["famulus_server.wiring.server", "openai.resources.responses", "openai.resources.chat"])


@asynccontextmanager
async def open_mortal(
    folder: Path, upstream: ScriptedUpstream, point: CrashPoint | None, **settings: Any
) -> AsyncIterator[tuple[Stage, BaseProcess]]:
    """A server on this folder, and its process, which is killed in the end if it still lives. `settings` are those of
    `stage_settings`."""
    heard, told = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_serve, args=(folder, upstream.base_url, settings, point, told), daemon=True)
    await asyncio.to_thread(process.start)
    told.close()
    try:
        async with stage_on(await asyncio.to_thread(heard.recv), upstream) as stage:
            yield stage, process
    finally:
        heard.close()
        process.kill()
        await died(process)


async def died(process: BaseProcess) -> int | None:
    """How the process ended, once it has."""
    await asyncio.to_thread(process.join, 30)
    return process.exitcode


def _serve(folder: Path, base_url: str, settings: dict[str, Any], point: CrashPoint | None, told: Connection) -> None:
    if point is not None:
        arm(point)
    asyncio.run(_run(folder, base_url, settings, told))


async def _run(folder: Path, base_url: str, settings: dict[str, Any], told: Connection) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with open_server(stage_settings(folder, base_url, **settings), progress=lambda _: None) as running:
        told.send(running.address)
        await stopped.wait()
