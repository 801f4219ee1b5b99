"""A server in a process of its own, which a test may kill. `python -m killable_server SETTINGS` serves, with the
arguments of `stage_settings` as JSON."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.wiring.server import open_server
from run_stage import Stage, stage_on, stage_settings

# The shortest that there is: a test has to wait for it.
LEASE_SECONDS = 1.0


@asynccontextmanager
async def open_killable(
    folder: Path, upstream: ScriptedUpstream, *, environ: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[Stage, Process]]:
    """A server on this folder, and its process, which is killed in the end if it still lives. `settings` are those of
    `stage_settings`; its lease is short."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environ or {})}
    settings["worker"] = {"lease_seconds": LEASE_SECONDS} | settings.get("worker", {})
    told = json.dumps({"folder": str(folder), "base_url": upstream.base_url} | settings)
    command = (sys.executable, "-m", "killable_server", told)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, env=environ
    )
    assert process.stdout is not None
    try:
        # The log comes first.
        lines = [line async for line in _until_address(process.stdout)]
        async with stage_on(lines[-1], upstream) as stage:
            yield stage, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_address(lines: asyncio.StreamReader) -> AsyncIterator[str]:
    async for line in lines:
        yield line.decode().strip().removeprefix("address ")
        if line.startswith(b"address "):
            return


async def _serve(given: dict[str, Any]) -> None:
    settings = stage_settings(Path(given.pop("folder")), given.pop("base_url"), **given)
    async with open_server(settings, progress=lambda _: None) as running:
        print(f"address {running.address}", flush=True)  # noqa: T201 - how the test learns it
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
