"""An issuer's web server, which a test may take away, slow down or let lie."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class KeyServer:
    """Serves what `body` is, and counts who asks."""

    def __init__(self) -> None:
        self.body: bytes = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        """Any request."""
        self.asked += 1
        self.reached.set()
        await self.go_on.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["KeyServer"]:
        """Listens while this is entered."""
        app = web.Application()
        app.router.add_get("/{any:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/keys.json"
        yield self
        await runner.cleanup()
