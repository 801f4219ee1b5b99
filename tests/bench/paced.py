"""`python -m bench.paced DELTAS`: an upstream that writes a delta each 50 ms, with the moment when it was written.

All processes of a machine have the same monotonic clock, so whoever reads a delta knows how long it took. What the
upstream itself is late does not count.
"""

import asyncio
import sys
import time

from aiohttp import web

from famulus_server.embedded.upstream.answer import compose
from famulus_server.embedded.upstream.faults import render_stream
from famulus_server.embedded.upstream.prompt import read_responses
from famulus_server.embedded.upstream.responses import ResponsesWire
from famulus_server.embedded.upstream.script import Scene

PACE_SECONDS = 0.05
_PLACE = "0" * 16


class _Upstream:
    def __init__(self, deltas: int) -> None:
        self._scene = Scene(text=(_PLACE,) * deltas)
        self._waiting: list[asyncio.Future[float]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The user says how many answers there will be: the first delta comes when all were asked for."""
        prompt = read_responses(await request.json())
        chunks = render_stream(ResponsesWire(), compose(self._scene, prompt), None, first=True, paced=True).chunks
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunks[0])
        due = await self._start(int(prompt.user_text))
        for chunk in chunks[1:]:
            await asyncio.sleep(due - time.monotonic())
            # Only the first: what follows the last delta repeats the whole text.
            await response.write(chunk.replace(_PLACE.encode(), f"{time.monotonic():016.6f}".encode(), 1))
            due += PACE_SECONDS
        await response.write_eof()
        return response

    async def _start(self, expected: int) -> float:
        """When the first delta of an answer is due: they begin evenly over the time between two deltas."""
        begins: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(begins)
        if len(self._waiting) == expected:
            now = time.monotonic()
            for number, waiting in enumerate(self._waiting):
                waiting.set_result(now + PACE_SECONDS * (1 + number / expected))
            self._waiting = []
        return await begins


async def main(deltas: int) -> None:
    """Serves until it is killed."""
    app = web.Application()
    app.router.add_post("/v1/responses", _Upstream(deltas).answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
