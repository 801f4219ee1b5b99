"""A proxy in front of the server that reads the events passing to the client, and cuts connections at them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

from google.protobuf.message import DecodeError

from accepting import accepting
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_service_pb2 import StreamRunResponse

_FRAME_HEADER = 9
_MESSAGE_HEADER = 5
_DATA = 0
_MOMENT = 0.03  # seconds
_PATIENCE = 5.0  # seconds for a client to close its side


class EventProxy:
    """Forwards gRPC connections to the first of its targets that accepts them, and tells of each event that passed.

    With `cutting`, a response of events is cut down to its first one, and the connection ends behind it: clients see
    each event on a connection of its own.
    """

    def __init__(self, targets: Sequence[str], *, passed: Callable[[RunEvent], None], cutting: bool = False) -> None:
        self._targets = targets
        self._passed = passed
        self._cutting = cutting
        self.cuts = 0

    def listening(self) -> AbstractAsyncContextManager[str]:
        """Gives the address of the proxy."""
        return accepting(self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await self._connect()
        if inner is None:
            writer.transport.abort()
            return
        inner_reader, inner_writer = inner
        upwards = asyncio.create_task(_copy(reader, inner_writer))
        downwards = asyncio.create_task(self._copy_events(inner_reader, writer))
        await asyncio.wait([upwards, downwards], return_when=asyncio.FIRST_COMPLETED)
        if downwards.done() and downwards.result():
            upwards.cancel()
            await asyncio.wait([upwards])
            await _part(reader, writer)
        for each in (writer, inner_writer):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()
        await asyncio.gather(upwards, downwards, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for target in self._targets:
            host, _, port = target.rpartition(":")
            with suppress(OSError):
                return await asyncio.open_connection(host, int(port))
        return None

    async def _copy_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Copies frame by frame, until the end or the cut; whether it was the latter."""
        messages: dict[int, bytearray] = {}
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                header = await reader.readexactly(_FRAME_HEADER)
                payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                events = []
                if header[3] == _DATA:
                    gathered = messages.setdefault(int.from_bytes(header[5:], "big"), bytearray())
                    gathered += payload
                    events = _take_events(gathered)
                if events and self._cutting:
                    del events[1:]
                    header, payload = _data_frame(header, events[0])
                writer.write(header + payload)
                await writer.drain()
                for event in events:
                    self._passed(event)
                if events and self._cutting:
                    self.cuts += 1
                    return True
        return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends a connection such that what was written still arrives: closed with something unread, it would be reset."""
    with suppress(ConnectionError, TimeoutError):
        # A client may report the end before it has handed out what came just before; then it would get no further.
        await asyncio.sleep(_MOMENT)
        writer.write_eof()
        async with asyncio.timeout(_PATIENCE):
            while await reader.read(65_536):
                pass


def _take_events(gathered: bytearray) -> list[RunEvent]:
    """Takes whole messages off the front; the events in them. What is no response of a stream has none."""
    events: list[RunEvent] = []
    while len(gathered) >= _MESSAGE_HEADER:
        end = _MESSAGE_HEADER + int.from_bytes(gathered[1:_MESSAGE_HEADER], "big")
        if len(gathered) < end:
            break
        # StreamRun and WatchRun answer alike on the wire.
        with suppress(DecodeError):
            response = StreamRunResponse.FromString(bytes(gathered[_MESSAGE_HEADER:end]))
            events += [event for event in response.events if event.sequence]
        del gathered[:end]
    return events


def _data_frame(header: bytes, event: RunEvent) -> tuple[bytes, bytes]:
    """A frame for the stream of another one, with a response of one event."""
    message = StreamRunResponse(events=[event]).SerializeToString()
    payload = b"\0" + len(message).to_bytes(4, "big") + message
    return len(payload).to_bytes(3, "big") + bytes([_DATA, 0]) + header[5:], payload
