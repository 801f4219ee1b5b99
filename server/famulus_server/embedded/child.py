"""Child processes that cannot outlive their owner: the owner's side of the guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.lock import lock

_GUARD = Path(__file__).with_name("guard.py")
_GRACE_SECONDS = 5.0
_SLACK_SECONDS = 2.0  # on top of the grace, for the guard itself
_TAIL_LINES = 3

T = TypeVar("T")


class ChildProcess:
    """One running command under its guard; made by `start`, ended by `close` or by the owner's death."""

    def __init__(
        self, *, process: asyncio.subprocess.Process, lifeline: IO[bytes], reports: IO[bytes] | None, log: Path
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._report = asyncio.create_task(_first_line(reports)) if reports else None
        self._log = log
        self._end = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
        reports: bool = False,
    ) -> ChildProcess:
        """Start the command (an absolute path and its arguments); its output is appended to `log`.

        The child and its guard hold a lock on `log` as long as they live, so a successor never runs beside a
        predecessor that is still going down; raises EmbeddedUnavailable when another owner's child keeps it,
        or when there can be no log. With `reports`, standard output is kept apart for `report`.
        """
        with contextlib.ExitStack() as child_side, contextlib.ExitStack() as owner_side:
            output = child_side.enter_context(_appended(log))
            try:
                await lock(output.fileno(), patience=_GRACE_SECONDS + _SLACK_SECONDS)
            except TimeoutError:
                raise EmbeddedUnavailable(
                    f"{log} is locked: another server uses this directory",
                    "Stop that server, or give this one a data directory of its own",
                ) from None
            # Pipes of our own: with asyncio's, a guard's end is not told while its command still holds one.
            stdin, lifeline = _pipe(child_side, owner_side)
            told, stdout = _pipe(owner_side, child_side) if reports else (None, output)
            starting = asyncio.create_task(
                asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(_GUARD), str(_GRACE_SECONDS), *command),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=output,
                    env=environ,
                    start_new_session=True,  # a Ctrl-C in the terminal is the owner's business
                )
            )
            try:
                process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # asyncio would kill the guard alone, and what that has started would stay.
                guard = await starting
                owner_side.close()
                await guard.wait()
                raise
            owner_side.pop_all()  # theirs from here on; the child's are closed on this side
        return cls(process=process, lifeline=lifeline, reports=told, log=log)

    async def exited(self) -> int:
        """Wait for the end, by itself or by `close`: the exit code, 128 + n for signal n."""
        return await asyncio.shield(self._end)

    async def report(self) -> str:
        """Wait for a line on standard output; raises EmbeddedUnavailable when the child ends without one."""
        line = await asyncio.shield(self._report) if self._report else b""
        if not line:
            raise self._ended(await self.exited())
        return line.decode().strip()

    async def until(self, ready: Coroutine[Any, Any, T], *, within: float) -> T:
        """The result of `ready`; a child that ends first, or `within` seconds, raise EmbeddedUnavailable.

        Whatever else happens than the result, the child is closed.
        """
        readiness = asyncio.create_task(ready)
        try:
            return await self._first(readiness, within)
        except BaseException:
            readiness.cancel()
            await asyncio.gather(readiness, self.close(), return_exceptions=True)
            raise

    async def close(self) -> int:
        """End the command, by force after 5 s, and wait for that; the exit code. Safe to repeat."""
        self._lifeline.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS + _SLACK_SECONDS):
                return await self.exited()
        self._kill()  # the guard is frozen
        return await self.exited()

    async def _first(self, readiness: asyncio.Task[T], within: float) -> T:
        await asyncio.wait({readiness, self._end}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if readiness.done():
            return readiness.result()
        if self._end.done():
            raise self._ended(self._end.result())
        raise EmbeddedUnavailable(f"{self._log.stem} was not ready in {within:g} s", f"See {self._log}")

    async def _watch(self) -> int:
        code = await self._process.wait()
        self._lifeline.close()
        if code < 0:
            self._kill()  # the guard was killed from outside: the command must not stay behind
        return code if code >= 0 else 128 - code

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ended(self, code: int) -> EmbeddedUnavailable:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        tail = "; ".join([line for line in lines if line][-_TAIL_LINES:])
        return EmbeddedUnavailable(f"{self._log.stem} ended with code {code}: {tail}", f"See {self._log}")


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """A pipe's two ends, each closed by its stack."""
    read, write = os.pipe()
    return reader.enter_context(os.fdopen(read, "rb", 0)), writer.enter_context(os.fdopen(write, "wb", 0))


async def _first_line(pipe: IO[bytes]) -> bytes:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        return await reader.readline()
    finally:
        transport.close()  # and the pipe with it


def _appended(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return log.open("ab", buffering=0)
    except OSError as error:
        raise EmbeddedUnavailable(
            f"{log} cannot be written: {error.strerror}", "Make its directory writable, or configure another"
        ) from error
