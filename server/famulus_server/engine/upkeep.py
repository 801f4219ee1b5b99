"""What is to be done now and then, whoever calls: retention, deletions that were left."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from famulus_server.errors import Unavailable

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to be done each so many seconds. To break it off, or to do it in two places at once, does no harm."""

    work: Callable[[], Awaitable[None]]
    seconds: float


class Upkeep:
    """Does chores, each in a task of its own."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = chores
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Starts."""
        self._tasks = [asyncio.create_task(_repeat(chore), name=chore.work.__name__) for chore in self._chores]

    async def close(self) -> None:
        """Breaks off whatever is being done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _repeat(chore: Chore) -> None:
    while True:
        try:
            await chore.work()
        except Unavailable:
            _log.warning("store unavailable", chore=chore.work.__name__)
        except Exception:  # noqa: BLE001 - a chore that nobody does would be missed by nobody
            _log.exception("chore failed", chore=chore.work.__name__)
        await asyncio.sleep(chore.seconds)
