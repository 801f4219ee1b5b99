"""A gRPC client that costs next to nothing: all bytes of a call but its number are made beforehand.

grpc.aio's own client takes as much of a processor for a call as the server that is to be measured.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from bench.servers import KEY
from hostile.http2 import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, literal

_PING, _WINDOW_UPDATE = 6, 8
_ACK = 1
_INITIAL_WINDOW = 4
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_HEAD = 9
_PREFIX = 5
# Windows are never filled up again: a connection is good for this much.
_OPENING = (
    PREFACE
    + frame(SETTINGS, 0, 0, _INITIAL_WINDOW.to_bytes(2) + _LARGEST_WINDOW.to_bytes(4))
    + frame(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4))
)

Hear = Callable[[bytes], object]
"""Is told each message of an answer."""


class Request:
    """A call of a method with a message, ready to be sent any number of times."""

    def __init__(self, address: str, path: str, message: bytes) -> None:
        fields = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", address.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"authorization", f"Bearer {KEY}".encode()),
        )
        self._headers = b"".join(literal(name, value) for name, value in fields)
        self._body = bytes(1) + len(message).to_bytes(4) + message

    def frames(self, stream: int) -> bytes:
        """What is sent for a call with this number."""
        return frame(HEADERS, END_HEADERS, stream, self._headers) + frame(DATA, END_STREAM, stream, self._body)


class Connection(asyncio.Protocol):
    """One connection, and the calls on it. A server allows 100 of them at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._calls: dict[int, _Call] = {}
        self._next = 1

    @classmethod
    async def open(cls, address: str) -> Self:
        """Connects."""
        host, _, port = address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return connection

    def start(self, request: Request, hear: Hear) -> "asyncio.Future[None]":
        """Starts a call. The future is done when the server ends it: how, the caller knows by what he heard. It fails
        with ConnectionError if call or connection break."""
        call = self._calls[self._next] = _Call(hear)
        assert self._transport is not None, "not open"
        self._transport.write(request.frames(self._next))
        self._next += 2
        return call.ended

    async def ask(self, request: Request) -> bytes:
        """The only message of an answer. Raises ConnectionError if there is none."""
        messages: list[bytes] = []
        await self.start(request, messages.append)
        if len(messages) != 1:
            raise ConnectionError("the call was refused")
        return messages[0]

    def close(self) -> None:
        """Calls that have not ended are forgotten."""
        self._calls.clear()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(_OPENING)

    def data_received(self, data: bytes) -> None:
        received, at = self._received, 0
        received += data
        while at + _HEAD <= len(received):
            end = at + _HEAD + int.from_bytes(received[at : at + 3])
            if end > len(received):
                break
            self._take(received[at + 3], received[at + 4], int.from_bytes(received[at + 5 : at + 9]), at + _HEAD, end)
            at = end
        del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        for call in self._calls.values():
            call.fail()
        self._calls.clear()

    def _take(self, kind: int, flags: int, stream: int, start: int, end: int) -> None:
        if kind == DATA and (call := self._calls.get(stream)) is not None:
            call.take(self._received[start:end])
        elif kind in {SETTINGS, _PING} and not flags & _ACK:
            assert self._transport is not None, "not open"
            payload = b"" if kind == SETTINGS else bytes(self._received[start:end])
            self._transport.write(frame(kind, _ACK, 0, payload))
        elif kind == RST_STREAM and stream in self._calls:
            self._calls.pop(stream).fail()
        elif kind == GOAWAY:
            self.connection_lost(None)
        if kind in {DATA, HEADERS} and flags & END_STREAM and stream in self._calls:
            self._calls.pop(stream).end()


class _Call:
    __slots__ = ("_hear", "_partial", "ended")

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._partial = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, data: bytearray) -> None:
        self._partial += data
        while len(self._partial) >= _PREFIX:
            end = _PREFIX + int.from_bytes(self._partial[1:_PREFIX])
            if len(self._partial) < end:
                break
            self._hear(bytes(self._partial[_PREFIX:end]))
            del self._partial[:end]

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError("the call was cut"))
