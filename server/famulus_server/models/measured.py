"""How models do: each call of one is counted, as it ended."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType

from famulus_server.errors import (
    ModelError,
    ModelProtocolError,
    ModelRateLimited,
    ModelSuspended,
    ModelTimeout,
    ModelUnavailable,
)
from famulus_server.ports import Metrics, Model, ModelEvent, ModelRequest, TurnEnded
from famulus_server.ports.metrics import UPSTREAM_CALLS, UPSTREAM_FIRST_EVENT_SECONDS, UPSTREAM_SECONDS

# The first that fits: some are kinds of others. All the rest was refused.
_RESULTS: Mapping[type[ModelError], str] = MappingProxyType(
    {
        ModelSuspended: "suspended",
        ModelRateLimited: "rate_limited",
        ModelTimeout: "timeout",
        ModelProtocolError: "protocol",
        ModelUnavailable: "unavailable",
    }
)


class MeasuredModel:
    """Implements the port `Model` around one that tries once. A call that its caller breaks off is `abandoned`."""

    def __init__(
        self, *, model: Model, name: str, metrics: Metrics, stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self._model = model
        self._name = name
        self._metrics = metrics
        self._stopwatch = stopwatch

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        started, heard, result = self._stopwatch(), False, "abandoned"
        try:
            async with aclosing(self._model.stream(request)) as stream:
                async for events in stream:
                    if not heard:
                        heard = True
                        self._metrics.observe(UPSTREAM_FIRST_EVENT_SECONDS, self._stopwatch() - started, self._name)
                    if isinstance(events[-1], TurnEnded):
                        result = "completed"
                        self._metrics.observe(UPSTREAM_SECONDS, self._stopwatch() - started, self._name)
                    yield events
        except ModelError as error:
            result = next((word for kind, word in _RESULTS.items() if isinstance(error, kind)), "rejected")
            raise
        finally:
            self._metrics.add(UPSTREAM_CALLS, self._name, result)

    async def count(self, request: ModelRequest) -> int | None:
        return await self._model.count(request)
