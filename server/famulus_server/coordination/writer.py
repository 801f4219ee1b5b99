"""A task that writes to Redis what gathers in this process, so that nobody waits for it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import structlog

from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.reachability import Reachability

_CLOSE_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Closable(Protocol):
    """Connections."""

    async def close(self) -> None:
        """Closes them."""


C = TypeVar("C", bound=Closable)


class Writer(Generic[C]):
    """Connects in the background, and then writes whenever there is something to write. `name` is for the log.

    `connect` makes the connections, and may import what they need. `is_due` tells whether there is something to write;
    `write` writes some of it, and raises RedisUnavailable and nothing else: the writer has to outlive whatever goes
    wrong. `lost` is called where it did. After each write it waits for `pause` seconds: what comes meanwhile goes
    together.
    """

    def __init__(
        self,
        *,
        name: str,
        connect: Callable[[], Awaitable[C]],
        is_due: Callable[[], bool],
        write: Callable[[C], Awaitable[None]],
        lost: Callable[[], None] = lambda: None,
        pause: float = 0.0,
    ) -> None:
        self._name = name
        self._connect = connect
        self._is_due = is_due
        self._write = write
        self._lost = lost
        self._pause = pause
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._state = Reachability(name=f"{name} (writing)")
        self._writing: asyncio.Task[None] | None = None
        self.connecting: asyncio.Task[C] | None = None
        """Gives the connections; raises RedisUnavailable where there can be none. None: this was never opened."""

    def open(self) -> None:
        """Starts to connect and to write."""
        self.connecting = asyncio.create_task(self._make(), name=f"{self._name}: connect")
        self._writing = asyncio.create_task(self._loop(self.connecting), name=f"{self._name}: write")

    async def close(self) -> None:
        """Writes what is left, as far as Redis lets it, and closes the connections."""
        if self._writing is None or self.connecting is None:
            return
        await asyncio.wait([self.connecting])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), _CLOSE_SECONDS)
        self._writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writing
        with contextlib.suppress(RedisUnavailable):
            await (await self.connecting).close()

    async def flush(self) -> None:
        """Returns once everything that is there to write is written, or could not be."""
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    def wake(self) -> None:
        """There is something to write."""
        self._wake.set()

    async def _make(self) -> C:
        try:
            return await self._connect()
        except Exception as error:  # noqa: BLE001 - its text may hold parts of the URL, and with them a password
            _log.warning(f"{self._name} cannot be used", error=type(error).__name__)
            raise RedisUnavailable(type(error).__name__) from None

    async def _loop(self, connecting: asyncio.Task[C]) -> None:
        while True:
            if not self._is_due():
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            try:
                # Until there is a connection, what comes gathers where it is bounded.
                await self._write(await asyncio.shield(connecting))
            except RedisUnavailable as error:
                self._lost()
                self._state.lost(error)
                self._idle.set()
                await self._state.pause()
            else:
                self._state.found()
                await asyncio.sleep(self._pause)
