"""Who calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from famulus_server.api.calls import Call, Caller


class OneCaller:
    """The layer for a server without authentication: everybody who can reach it is the same caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        call.caller = self._caller
        yield
