"""The processes of a trial and what can be done to them: replicas, Valkey, PostgreSQL."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from chaos.journal import Journal
from famulus_server.embedded.valkey import EmbeddedValkey

_TESTS = Path(__file__).parent.parent
_START_PATIENCE = 40.0
# Contract 29.
_EXIT_SECONDS = 30.0


class Replica:
    """One server process that comes back at the same address."""

    def __init__(self, *, number: int, folder: Path, mutation: str, journal: Journal) -> None:
        self.number = number
        self.address = f"127.0.0.1:{_free_port()}"
        self.config = folder / f"replica-{number}.toml"
        self.log = folder / f"replica-{number}.log"
        self.healthy = False
        self.pid = 0
        self.ended_pids: set[int] = set()
        self._mutation = mutation
        self._journal = journal
        self._process: Process | None = None
        self._expected = False  # its end

    async def start(self) -> None:
        """Returns once it serves. While the database is away it cannot start, and is started again."""
        give_up = time.monotonic() + _START_PATIENCE
        while not await self._try():
            if time.monotonic() > give_up:
                self._journal.violate("a replica does not start", self.address, self._tail())
                raise RuntimeError(f"replica {self.number} does not start: {self._tail()}")
            await asyncio.sleep(0.2)
        self.healthy = True

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> None:
        """SIGTERM: it must drain and exit by itself, in good order and in time."""
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                code = await self._end(signal.SIGTERM)
        except TimeoutError:
            os.kill(self.pid, signal.SIGUSR1)
            await asyncio.sleep(0.5)
            self._journal.violate("SIGTERM: no exit in 30 s", self.address, self._tail())
            await self.kill()
            return
        if code != 0:
            self._journal.violate("SIGTERM: bad exit", self.address, f"code {code}: {self._tail()}")

    def freeze(self) -> None:
        """SIGSTOP."""
        self.healthy = False
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        self.healthy = True

    async def close(self) -> None:
        """Ends it, however it is."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def _try(self) -> bool:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FAMULUS_")}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "chaos.replica", str(self.config), *filter(None, [self._mutation])]
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=PIPE, stderr=log, env=environ
            )
        self._process, self.pid, self._expected = process, process.pid, False
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"famulus serves "):
                self._watching = asyncio.create_task(self._notice_end(process))
                return True
        await process.wait()
        self.ended_pids.add(process.pid)
        return False

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None, "not started"
        self.healthy, self._expected = False, True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        code = await self._process.wait()
        self.ended_pids.add(self.pid)
        return code

    async def _notice_end(self, process: Process) -> None:
        code = await process.wait()
        if not self._expected:
            self.healthy = False
            self._journal.violate("a replica ended by itself", self.address, f"code {code}: {self._tail()}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3_000:] if self.log.exists() else ""


class Valkey:
    """A Valkey server that may lose everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedValkey(data_dir=folder)
        self.url = ""

    async def start(self) -> None:
        """Returns once it answers."""
        self.url = await self._server.start()

    async def kill(self) -> None:
        """SIGKILL; what it had written is gone, too."""
        os.kill(self._pid(), signal.SIGKILL)
        await self._server.exited()
        for kept in (self._folder / "valkey").glob("appendonly*"):
            shutil.rmtree(kept)

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """SIGSTOP, and SIGCONT in the end."""
        pid = self._pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def close(self) -> None:
        """Stops it."""
        await self._server.close()

    def _pid(self) -> int:
        """The server's own process: the child of its guard."""
        child = self._server._child
        assert child is not None, "not started"
        guard = child._process.pid
        return int(Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
