"""A server in a process of its own, which a test may kill. `python -m killable_server FOLDER BASE_URL` serves."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.wiring import open_server
from run_stage import Stage, stage_on, stage_settings

# The shortest that there is: a test has to wait for it.
LEASE_SECONDS = 1.0


@asynccontextmanager
async def open_killable(folder: Path, upstream: ScriptedUpstream) -> AsyncIterator[tuple[Stage, Process]]:
    """A server on this folder, and its process, which is killed in the end if it still lives."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = (sys.executable, "-m", "killable_server", str(folder), upstream.base_url)
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


async def _serve(folder: Path, base_url: str) -> None:
    settings = stage_settings(folder, base_url, worker={"lease_seconds": LEASE_SECONDS})
    async with open_server(settings, progress=lambda _: None) as running:
        print(f"address {running.address}", flush=True)  # noqa: T201 - how the test learns it
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
