"""How long the database takes, and how often it refuses."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from famulus_server.errors import Unavailable
from famulus_server.ports import Metrics, Store, Transaction
from famulus_server.ports.metrics import STORE_FAILURES, STORE_SECONDS

T = TypeVar("T")


class MeasuredStore:
    """See `ports.Store`: another one, whichever engine it is."""

    def __init__(self, store: Store, *, metrics: Metrics, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._store = store
        self._metrics = metrics
        self._stopwatch = stopwatch

    async def read(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._measure("read", self._store.read(unit))

    async def write(self, unit: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._measure("write", self._store.write(unit))

    async def _measure(self, kind: str, work: Awaitable[T]) -> T:
        started = self._stopwatch()
        try:
            return await work
        except Unavailable:
            self._metrics.add(STORE_FAILURES, kind, "unavailable")
            raise
        finally:
            self._metrics.observe(STORE_SECONDS, self._stopwatch() - started, kind)
