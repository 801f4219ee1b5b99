"""What it costs to ask the limiter: an embedded Valkey over its socket, one replica here.

Prints a table, and as its last line one line of JSON. The time of a bare PING is beside it: on a shared machine only
what is more than that is the limiter's.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from famulus_server.coordination.connection import Line
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.ports import Demand, Limit, Quantity, Scope

_CHECKS = 3_000
_CALLERS = 32
_CALLS_OF_EACH = 200
_SCOPES: tuple[Scope, ...] = ("tenant", "user", "assistant", "model", "tenant_model")
_QUANTITIES: tuple[Quantity, ...] = ("requests", "tokens", "runs")
# Never reached: a refusal writes less.
_PLENTY = 10**9


async def main() -> None:
    """Measures, and prints what came out."""
    with tempfile.TemporaryDirectory() as folder:
        valkey = EmbeddedValkey(data_dir=Path(folder))
        url = await valkey.start()
        line, limiter = Line(url=url, timeout=1.0), RedisLimiter(url=url, patience=Patience(), owner="bench")
        limiter.open()
        while not limiter.is_shared:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        await line.renew()
        figures = {
            "ping_p50_us": await _p50(lambda: line.ask([("PING",)])),
            "limiter_1_p50_us": await _p50(lambda: _take(limiter, _demands(1))),
            "limiter_7_p50_us": await _p50(lambda: _take(limiter, _demands(7))),
            "limiter_checks_per_s": await _rate(limiter),
        }
        await limiter.close()
        await line.close()
        await valkey.close()
    for name, figure in figures.items():
        print(f"{name:28}{figure:14,.2f}")
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


def _demands(count: int) -> list[Demand]:
    limits = [
        Limit(scope, "acme/someone", quantity, _PLENTY, 0.0 if quantity == "runs" else 1e6)
        for scope in _SCOPES
        for quantity in _QUANTITIES
    ]
    return [Demand(limit) for limit in limits[:count]]


async def _take(limiter: RedisLimiter, demands: list[Demand]) -> None:
    refused = await limiter.take(demands, holder="run", seconds=60.0)
    if refused is not None or not limiter.is_shared:
        raise RuntimeError("this measures something else than checks in Redis")


async def _p50(check: Callable[[], Awaitable[Any]]) -> float:
    times = []
    for _ in range(_CHECKS):
        start = time.perf_counter()
        await check()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


async def _rate(limiter: RedisLimiter) -> float:
    demands = _demands(3)

    async def call() -> None:
        for _ in range(_CALLS_OF_EACH):
            await _take(limiter, demands)

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    return _CALLERS * _CALLS_OF_EACH / (time.perf_counter() - start)


if __name__ == "__main__":
    asyncio.run(main())
