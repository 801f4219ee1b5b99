"""Going away politely (contract 29): new runs are refused, open streams are told to resume elsewhere."""

import math
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.engine.timer import Timer
from famulus_server.errors import Unavailable

T = TypeVar("T")

_RETRY_SECONDS = 1.0


class Drain:
    """Whether the server is going away, and what waits for nothing else. It never comes back from that."""

    def __init__(self) -> None:
        self._started = False
        self._timers: set[Timer] = set()

    @property
    def started(self) -> bool:
        """Whether the server is going away."""
        return self._started

    def start(self) -> None:
        """Interrupts everything that waits inside `interrupting`. Call it in the server's event loop."""
        self._started = True
        for timer in self._timers:
            timer.allow(0.0)

    def check(self) -> None:
        """Raises Unavailable (SERVER_DRAINING) if the server is going away."""
        if self._started:
            raise Unavailable(
                reasons.ERROR_REASON_SERVER_DRAINING,
                "the server is about to stop: call again to reach another one",
                retry_after=_RETRY_SECONDS,
            )

    @asynccontextmanager
    async def interrupting(self) -> AsyncIterator[None]:
        """Around something that may wait for long: raises Unavailable (SERVER_DRAINING) as soon as draining starts."""
        self.check()
        with self._ringing() as timer:
            try:
                with timer:
                    yield
            except TimeoutError:
                self.check()
                raise

    async def until_started(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """The items, until draining starts; then Unavailable (SERVER_DRAINING)."""
        with self._ringing() as timer:
            while True:
                self.check()
                try:
                    with timer:
                        item = await anext(items, None)
                except TimeoutError:
                    self.check()
                    raise
                if item is None:
                    return
                yield item

    @contextmanager
    def _ringing(self) -> Iterator[Timer]:
        """A timer that rings when draining starts: cheaper than a second task to wait for each event of each stream."""
        timer = Timer(math.inf)
        self._timers.add(timer)
        try:
            yield timer
        finally:
            self._timers.discard(timer)
            timer.close()


class Admission:
    """The layer that refuses methods which start new work once draining has started."""

    def __init__(self, *, drain: Drain, methods: Collection[str]) -> None:
        self._drain = drain
        self._methods = frozenset(methods)

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        if method.name not in self._methods:
            return proceed

        async def admit(call: Call) -> None:
            self._drain.check()
            await proceed(call)

        return admit
