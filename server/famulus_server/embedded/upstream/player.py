"""Plays one scene to one client: the pace, the bytes, and how the connection ends."""

import asyncio
import contextlib
import socket
import struct
from functools import lru_cache

import msgspec
from aiohttp import web

from famulus_server.embedded.upstream.answer import REQUEST_NUMBER, Answer, compose
from famulus_server.embedded.upstream.faults import DEFAULT_MESSAGE, Play, render_body, render_stream
from famulus_server.embedded.upstream.prompt import Prompt
from famulus_server.embedded.upstream.recorder import ReceivedRequest
from famulus_server.embedded.upstream.script import INSTEAD_OF_ANSWER, Fault, Scene
from famulus_server.embedded.upstream.wire import Ending, Wire, error_object

_PLACEHOLDER = msgspec.json.encode(REQUEST_NUMBER)[1:-1]
_RENDERED_ANSWERS = 32
_PING = b": ping\n\n"
_PING_INTERVAL_MS = 200.0


class Player:
    """Writes scenes in one wire format. Answers without fault are rendered once and kept."""

    def __init__(self, *, wire: Wire) -> None:
        self._wire = wire
        self._render_kept = lru_cache(maxsize=_RENDERED_ANSWERS)(self._render)

    async def play(
        self, scene: Scene, prompt: Prompt, request: web.Request, received: ReceivedRequest
    ) -> web.StreamResponse:
        """Raises CancelledError or ConnectionError when the client went away."""
        fault = scene.fault
        if fault is not None and fault.kind in INSTEAD_OF_ANSWER:
            await asyncio.sleep(scene.first_ms / 1000)
            return await _refuse(fault, request, received)
        answer = compose(scene, prompt)
        headers = {"x-request-id": f"req_{received.number}"} | (scene.headers or {})
        response = web.StreamResponse(headers=headers)
        if prompt.stream:
            play = self._stream(scene, answer)
            response.content_type = "text/event-stream"
            response.headers["cache-control"] = "no-cache"
        else:
            play = render_body(self._wire, answer, fault)
            response.content_type = "application/json"
            pauses = max(answer.delta_count - 1, 0)
            await asyncio.sleep((scene.first_ms + scene.pace_ms * pauses) / 1000)
        await response.prepare(request)
        await _write(response, play, scene, received)
        await _end(play.ending, request, response, received, fault)
        return response

    def _stream(self, scene: Scene, answer: Answer) -> Play:
        first, paced = scene.first_ms > 0, scene.pace_ms > 0 or scene.hold_after is not None
        render = self._render if scene.fault else self._render_kept
        return render(answer, scene.fault, first, paced)

    def _render(self, answer: Answer, fault: Fault | None, first: bool, paced: bool) -> Play:
        return render_stream(self._wire, answer, fault, first=first, paced=paced)


async def _write(response: web.StreamResponse, play: Play, scene: Scene, received: ReceivedRequest) -> None:
    loop = asyncio.get_running_loop()
    # Each delta has its own due time, so that delays do not add up.
    due = loop.time() + scene.first_ms / 1000
    for number, chunk in enumerate(play.chunks):
        if number > 0:
            if scene.hold_after == number - 1:
                await received.released.wait()
            await asyncio.sleep(due - loop.time())
            due += scene.pace_ms / 1000
        data = chunk.replace(_PLACEHOLDER, str(received.number).encode())
        if play.ending is Ending.CLOSE and number == len(play.chunks) - 1:
            # In one write with the end of the body: a client that leaves at the last event has not left early.
            await response.write_eof(data)
        elif data:
            await response.write(data)


async def _end(
    ending: Ending,
    request: web.Request,
    response: web.StreamResponse,
    received: ReceivedRequest,
    fault: Fault | None,
) -> None:
    match ending:
        case Ending.CUT:
            received.close("broken")
            if request.transport is not None:
                request.transport.close()
        case Ending.RESET:
            received.close("broken")
            _reset(request)
        case Ending.HANG:
            await _hang()
        case Ending.PINGS:
            interval = (fault.interval_ms if fault else None) or _PING_INTERVAL_MS
            while True:
                await response.write(_PING)
                await asyncio.sleep(interval / 1000)


async def _refuse(fault: Fault, request: web.Request, received: ReceivedRequest) -> web.StreamResponse:
    match fault.kind:
        case "hang_before_response":
            await _hang()
        case "reset_before_response":
            received.close("broken")
            _reset(request)
    status = fault.status or 500
    body = error_object(status, fault.message or DEFAULT_MESSAGE, fault.code)
    return web.json_response(body, status=status, headers=fault.headers)


async def _hang() -> None:
    await asyncio.Event().wait()


def _reset(request: web.Request) -> None:
    """Close with RST: a linger time of zero drops what was not sent, and says so to the other side."""
    if request.transport is None:
        return
    with contextlib.suppress(OSError):
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    request.transport.abort()
