"""Work that outlives the call that asked for it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

_log = structlog.get_logger()

T = TypeVar("T")


class Errands:
    """Tasks that go on when their call is cancelled, and that a stop of the server waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, errand: Coroutine[Any, Any, object]) -> None:
        """Runs it; nobody awaits the result, so a failure is logged."""
        self._spawn(self._logged(errand))

    async def see_through(
        self, errand: Coroutine[Any, Any, T], *, abandoned: Callable[[T], Awaitable[object]] | None = None
    ) -> T:
        """Runs it to its end even if the call is cancelled meanwhile; then `abandoned` gets the result."""
        # Told by the errand itself: a shield around its task would take another turn of the event loop to tell.
        end = asyncio.get_running_loop().create_future()
        task = self._spawn(_telling(end, errand))
        try:
            await end
        except asyncio.CancelledError:
            self.start(_hand_over(task, abandoned))
            raise
        return task.result()

    async def finish(self, *, seconds: float) -> None:
        """Waits for all, at most so long; cancels what is left."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._tasks:
            patience = max(0.0, deadline - asyncio.get_running_loop().time())
            _, late = await asyncio.wait(self._tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _spawn(self, errand: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(errand)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _logged(self, errand: Coroutine[Any, Any, object]) -> None:
        try:
            await errand
        except Exception:  # noqa: BLE001 - logged with its traceback, and nobody else is told
            _log.exception("errand failed")


async def _telling(end: asyncio.Future[None], errand: Coroutine[Any, Any, T]) -> T:
    try:
        return await errand
    finally:
        if not end.done():
            end.set_result(None)


async def _hand_over(task: asyncio.Task[T], receiver: Callable[[T], Awaitable[object]] | None) -> None:
    result = await task
    if receiver is not None:
        await receiver(result)
