"""Keeps a child server running: one that ends by itself is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import structlog

from famulus_server.embedded.errors import EmbeddedUnavailable

_FIRST_DELAY = 1.0
_MAX_DELAY = 30.0

_log = structlog.get_logger(__name__)


class Child(Protocol):
    """A server in a process of its own."""

    async def start(self) -> str:
        """Starts it, also after it has ended: its URL, the same each time. Raises EmbeddedUnavailable."""

    async def exited(self) -> int:
        """Waits for the end of what `start` has started: its exit code."""


async def keep_running(
    child: Child, *, name: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> NoReturn:
    """Starts the child again whenever it ends, until this is cancelled; cancel it before you close the child.

    It waits 1 s before that, twice as long each time, at most 30 s; one that has run for 30 s begins anew.
    """
    now = asyncio.get_running_loop().time
    delay, started = _FIRST_DELAY, now()
    while True:
        code = await child.exited()
        if now() - started >= _MAX_DELAY:
            delay = _FIRST_DELAY
        _log.warning("embedded server ended", name=name, exit_code=code, restart_in=delay)
        while True:
            await sleep(delay)
            delay = min(delay * 2, _MAX_DELAY)
            try:
                await child.start()
            except (EmbeddedUnavailable, OSError) as error:
                _log.warning("embedded server does not start", name=name, error=str(error), restart_in=delay)
            else:
                break
        started = now()
        _log.info("embedded server runs again", name=name)
