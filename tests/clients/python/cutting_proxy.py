"""A TCP proxy that kills connections after some bytes."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, suppress

from accepting import accepting


class CuttingProxy:
    """Forwards to a target. Each connection is reset when it has carried its share of bytes to the client; the shares
    are taken one by one, and connections after the last of them live on."""

    def __init__(self, target: str, shares: Iterable[int]) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._shares = iter(shares)
        self.cuts = 0

    def listening(self) -> AbstractAsyncContextManager[str]:
        """Gives the address of the proxy."""
        return accepting(self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        share = next(self._shares, None)
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
        upwards = asyncio.create_task(_copy(reader, inner_writer, None))
        downwards = asyncio.create_task(_copy(inner_reader, writer, share))
        await asyncio.wait([upwards, downwards], return_when=asyncio.FIRST_COMPLETED)
        if downwards.done() and downwards.result():
            self.cuts += 1
            _reset(writer)
        for each in (writer, inner_writer):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()
        await asyncio.gather(upwards, downwards)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, share: int | None) -> bool:
    """Copies until the end, or the end of the share; whether it was the latter."""
    with suppress(ConnectionError):
        while data := await reader.read(4_096 if share is None else min(share, 4_096)):
            writer.write(data)
            await writer.drain()
            if share is not None:
                share -= len(data)
                if share <= 0:
                    return True
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a reset instead of a proper end."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
