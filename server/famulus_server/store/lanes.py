"""One thread that executes units of work for an event loop, in batches."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from famulus_server.ports import Transaction
from famulus_server.store.refusals import overloaded, unavailable

Unit = Callable[[Transaction], Awaitable[Any]]

# Units that wait: at some thousands a second, the last of them waits for seconds already.
_MAX_WAITING = 20_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unit ended: with a value, or with an error."""

    value: Any = None
    error: BaseException | None = None


class Lane:
    """Hands all units that have gathered to `execute`, on its thread, and their outcomes back to those who wait.

    A caller that no longer waits changes nothing for its neighbours; its unit may have been executed.
    """

    def __init__(self, *, name: str, execute: Callable[[Sequence[Unit]], Sequence[Outcome]], batch: int) -> None:
        self._execute = execute
        self._batch = batch
        self._jobs: SimpleQueue[tuple[Unit, asyncio.Future[Any]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self.open = True  # whether it takes units
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def submit(self, unit: Unit) -> Any:
        """What the unit returns or raises. Raises Unavailable once the lane is closed, or where too many units wait."""
        if not self.open:
            raise unavailable()
        if self._jobs.qsize() >= _MAX_WAITING:
            raise overloaded()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put((unit, future))
        return await future

    async def close(self) -> None:
        """Takes no more units, executes those that wait, ends the thread."""
        if self.open:
            self.open = False
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        going_on = True
        while going_on:
            units, futures, going_on = self._gather()
            if not units:
                break
            try:
                outcomes = self._execute(units)
            except BaseException as error:  # noqa: BLE001 - the thread must outlive it, those who wait are told
                outcomes = [Outcome(error=error)] * len(units)
            # The loop is gone only where nobody waits any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, futures, outcomes)

    def _gather(self) -> tuple[list[Unit], list[asyncio.Future[Any]], bool]:
        """Waits for a unit and takes those that have gathered behind it; False at the end of all."""
        units: list[Unit] = []
        futures: list[asyncio.Future[Any]] = []
        job = self._jobs.get()
        while job is not None:
            units.append(job[0])
            futures.append(job[1])
            if len(units) == self._batch:
                return units, futures, True
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return units, futures, True
        return units, futures, False


def _resolve(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if outcome.error is None:
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)
