"""A small language model as a child process, OpenAI-compatible over HTTP on loopback.

It has 135 million parameters: it shows that the plumbing works, its answers are worth nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from pathlib import Path
from urllib.parse import urlsplit

from famulus_server.embedded.child import ChildProcess
from famulus_server.embedded.errors import EmbeddedUnavailable

MODEL_NAME = "smollm2-135m-instruct"
_POLL_SECONDS = 0.01


class LocalModel:
    """Owns one model server with `slots` answers at a time (2,048 tokens each); logs to `data_dir`."""

    def __init__(self, *, weights: Path, data_dir: Path, slots: int = 4, start_timeout: float = 60.0) -> None:
        self._weights = weights.resolve()
        self._data_dir = data_dir
        self._slots = slots
        self._start_timeout = start_timeout
        self._port = 0
        self._child: ChildProcess | None = None

    async def start(self) -> str:
        """Load the model and wait until it is healthy: the base URL, with `/v1`, on a free port, which later starts
        use again.

        May be called again after the server has ended by itself. Raises EmbeddedUnavailable.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise EmbeddedUnavailable(
                "The embedded model server is not installed (package xllamacpp)",
                "Install famulus-server[embedded], or name a model server in the configuration",
            )
        if not self._weights.is_file():
            raise EmbeddedUnavailable(
                f"There are no model weights at {self._weights}", "Run `famulus-server models pull`"
            )
        self._child = await ChildProcess.start(
            [
                *(sys.executable, "-P", "-m", "famulus_server.embedded.local_model_server"),
                *(str(self._weights), MODEL_NAME, str(self._slots), str(self._port)),
            ],
            log=self._data_dir / "local_model.log",
            reports=True,
        )
        address = await self._child.until(_healthy(self._child), within=self._start_timeout)
        self._port = urlsplit(address).port or 0
        return f"{address}/v1"

    async def exited(self) -> int:
        """Wait for the server's end: its exit code. Call it after `start`."""
        if self._child is None:
            raise RuntimeError("not started")
        return await self._child.exited()

    async def close(self) -> None:
        """Stop the server; answers in progress are cut."""
        if self._child is not None:
            await self._child.close()


async def _healthy(child: ChildProcess) -> str:
    """Wait for the address it listens on and for its health endpoint's OK: the address."""
    address = await child.report()
    url = urlsplit(address)
    while True:
        with contextlib.suppress(OSError):  # should it just have died, its end is what is told
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
            if status.split()[1:2] == [b"200"]:
                return address
        await asyncio.sleep(_POLL_SECONDS)
