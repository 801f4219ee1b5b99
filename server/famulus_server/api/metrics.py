"""What is counted of calls."""

import time
from collections import Counter
from collections.abc import Callable

from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.ports import Metrics
from famulus_server.ports.metrics import RPC_SECONDS, RPCS, RPCS_OPEN


class CallMetrics:
    """The layer that counts calls by their methods and codes, and measures those that are no streams."""

    def __init__(self, *, metrics: Metrics, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._stopwatch = stopwatch
        self._open = Counter[str]()
        metrics.show(RPCS_OPEN, lambda: {(name,): number for name, number in self._open.items()})

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        # "RunService/GetRun": packages are no news.
        name = method.name.rpartition(".")[2]

        async def count(call: Call) -> None:
            self._open[name] += 1
            started = self._stopwatch()
            try:
                await proceed(call)
            finally:
                self._open[name] -= 1
                self._metrics.add(RPCS, name, call.code)
                if not method.streams:
                    self._metrics.observe(RPC_SECONDS, self._stopwatch() - started, name)

        return count
