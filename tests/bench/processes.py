"""The server and the scripted upstream as processes of their own."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

_COMMAND = Path(sys.executable).with_name("famulus-server")
_ADDRESS = re.compile(r"(http://)?127\.0\.0\.1:\d+\S*")


@contextlib.asynccontextmanager
async def started(folder: Path, script: str, **model: int) -> AsyncIterator[tuple[str, str, psutil.Process]]:
    """The addresses of an upstream that plays this script and of a server whose model `bench` it is, with further
    settings of that; and the server."""
    played = folder / "script.toml"
    played.write_text(script)
    async with launched("fake-upstream", "--script", str(played), "--port", "0") as (_, upstream):
        config = folder / "famulus.toml"
        settings = "".join(f"{name} = {value}\n" for name, value in model.items())
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\ndata_dir = "{folder}/data"\n[log]\nlevel = "warning"\n'
            f'[metrics]\nlisten = "127.0.0.1:0"\n'
            f'[[models]]\nname = "bench"\nbackend = "responses"\nbase_url = "{upstream}"\n{settings}'
        )
        async with launched("--config", str(config), "serve") as (process, address):
            yield upstream, address, psutil.Process(process.pid)


@contextlib.asynccontextmanager
async def launched(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A command of ours, and the address that its first line names."""
    process = await asyncio.create_subprocess_exec(
        _COMMAND, *arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        found = _ADDRESS.search(line)
        assert found, f"no address in {line!r}"
        yield process, found[0]
    finally:
        process.terminate()
        await process.wait()
