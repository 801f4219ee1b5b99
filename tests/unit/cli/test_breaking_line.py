"""The line that breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from famulus_server.cli.breaking_line import BreakingLine

ANSWER = b"x" * 10_000


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(ANSWER)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def answering(*, through_bytes: int) -> AsyncIterator[tuple[BreakingLine, asyncio.StreamReader]]:
    """A server's answer, read over a line that carries so many bytes."""
    async with await asyncio.start_server(_answer, "127.0.0.1", 0) as server:
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with BreakingLine(target=target, after_bytes=through_bytes) as line:
            host, _, port = line.address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"?\n")
            yield line, reader
            writer.close()


async def test_line_breaks_with_a_reset_after_so_many_bytes() -> None:
    async with answering(through_bytes=1_000) as (line, reader):
        line.note_arrival()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(len(ANSWER))
        assert line.broken


async def test_line_does_not_break_before_something_was_read() -> None:
    async with answering(through_bytes=1_000) as (line, reader):
        assert await reader.readexactly(1_000) == ANSWER[:1_000]
        rest = asyncio.create_task(reader.read())
        done, _ = await asyncio.wait({rest}, timeout=0.05)
        assert not done
        line.note_arrival()
        with pytest.raises(ConnectionResetError):
            await rest


async def test_line_that_carries_less_does_not_break() -> None:
    async with answering(through_bytes=len(ANSWER) + 1) as (line, reader):
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        assert not line.broken
