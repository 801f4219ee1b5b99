"""A line to a server that breaks once, as lines do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

_CHUNK = 512
_PATIENCE = 10.0  # seconds
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class BreakingLine:
    """Relays TCP connections to `target` (`host:port`) until it has carried `after_bytes` from there; then it breaks,
    as soon as `note_arrival` was called.

    Enter it, then connect to `address`. `broken` tells whether it happened.
    """

    def __init__(self, *, target: str, after_bytes: int) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._bytes_left = after_bytes
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self.address = ""

    @property
    def broken(self) -> bool:
        """Whether it has carried all it carries."""
        return self._bytes_left <= 0

    def note_arrival(self) -> None:
        """Tell that something of what was carried has been read: a line that breaks before takes that with it."""
        self._arrived.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self._break()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self._relays.add(asyncio.create_task(self._relay(near_reader, near)))

    async def _relay(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        far_reader, far = await asyncio.open_connection(self._host, self._port)
        self._ends |= {near, far}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._carry(near_reader, far), self._carry_back(far_reader, near))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(_CHUNK):
            sink.write(chunk)
            await sink.drain()

    async def _carry_back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while not self.broken and (chunk := await source.read(min(_CHUNK, self._bytes_left))):
            self._bytes_left -= len(chunk)
            sink.write(chunk)
            await sink.drain()
        if self.broken:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), _PATIENCE)
        self._break()

    def _break(self) -> None:
        """Resets the connections: whoever reads is told at once."""
        for end in self._ends:
            raw = end.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.transport.abort()
        self._ends.clear()
