"""What is counted of calls."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from famulus_server.api.access_log import code_of_end
from famulus_server.api.calls import Call
from famulus_server.ports import Metrics
from famulus_server.ports.metrics import RPC_SECONDS, RPCS, RPCS_OPEN


class CallMetrics:
    """The layer that counts calls by their methods and codes, and measures those that are no streams."""

    def __init__(self, *, metrics: Metrics, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._stopwatch = stopwatch
        self._open = Counter[str]()
        metrics.show(RPCS_OPEN, lambda: {(method,): number for method, number in self._open.items()})

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        # "RunService/GetRun": packages are no news.
        method = call.method.rpartition(".")[2]
        self._open[method] += 1
        started = self._stopwatch()
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self._open[method] -= 1
            self._metrics.add(RPCS, method, code_of_end(call, cancelled=cancelled))
            if not call.streams:
                self._metrics.observe(RPC_SECONDS, self._stopwatch() - started, method)
