"""What is measured, as processes of its own."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_TESTS = Path(__file__).parent.parent
_COMMAND = str(Path(sys.executable).with_name("famulus-server"))
_ADDRESS = re.compile(r"(http://)?127\.0\.0\.1:\d+[^\s,]*")
_START_SECONDS = 90.0


@dataclass(frozen=True)
class Program:
    """A process that serves at an address."""

    address: str
    process: psutil.Process

    @property
    def children(self) -> list[psutil.Process]:
        """What it started, and what that started."""
        return self.process.children(recursive=True)


@contextlib.asynccontextmanager
async def famulus(*arguments: str, log: Path) -> AsyncIterator[Program]:
    """Our command, once it prints its address."""
    async with _started([_COMMAND, *arguments], log, {}) as program:
        yield program


@contextlib.asynccontextmanager
async def module(name: str, *arguments: str, log: Path) -> AsyncIterator[Program]:
    """A module of the tests, once it prints its address."""
    async with _started([sys.executable, "-m", name, *arguments], log, {}) as program:
        yield program


@contextlib.asynccontextmanager
async def script(
    python: Path, path: Path, *arguments: str, log: Path, env: Mapping[str, str]
) -> AsyncIterator[Program]:
    """A script in an environment of its own, once it prints its address."""
    async with _started([str(python), str(path), *arguments], log, env, says_on_stderr=True) as program:
        yield program


@contextlib.asynccontextmanager
async def _started(
    command: list[str], log: Path, env: Mapping[str, str], *, says_on_stderr: bool = False
) -> AsyncIterator[Program]:
    """Raises RuntimeError, with the end of its log, unless it prints its address in time."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FAMULUS_")}
    path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if says_on_stderr else errors,
            env={**ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "NONE", **env},
            start_new_session=True,
        )
    assert process.stdout is not None
    rest: asyncio.Task[None] | None = None
    try:
        try:
            async with asyncio.timeout(_START_SECONDS):
                address = await _address(process.stdout)
        except (TimeoutError, EOFError):
            raise RuntimeError(f"{command[0]} does not start: {_end_of(log)}") from None
        # Nobody reads what else it prints, and it must not wait for that.
        rest = asyncio.create_task(_skip(process.stdout))
        yield Program(address, psutil.Process(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        if rest is not None:
            await rest


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1_000:]


async def _address(stdout: asyncio.StreamReader) -> str:
    while line := (await stdout.readline()).decode():
        if found := _ADDRESS.search(line):
            return found[0]
    raise EOFError


async def _skip(stdout: asyncio.StreamReader) -> None:
    while await stdout.read(65_536):
        pass
