"""Beside the workloads: what it costs to ask the limiter, an embedded Valkey over its socket, one replica here.

The time of a bare PING is beside it: on a shared machine only what is more than that is the limiter's.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.plan import Plan
from bench.results import Results
from bench.stage import Stage
from famulus_server.coordination.connection import Line
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.ports import Demand, Limit, Quantity, Scope

_CALLERS = 32
_SCOPES: tuple[Scope, ...] = ("tenant", "user", "assistant", "model", "tenant_model")
_QUANTITIES: tuple[Quantity, ...] = ("requests", "tokens", "runs")
# Never reached: a refusal writes less.
_PLENTY = 10**9


async def measure(stage: Stage, plan: Plan) -> Results:
    """Checks of one limit and of seven, one after the other; and of three by 32 callers."""
    folder = stage.folder / "limits"
    folder.mkdir()
    valkey = EmbeddedValkey(data_dir=folder)
    url = await valkey.start()
    line, limiter = Line(url=url, timeout=1.0), RedisLimiter(url=url, patience=Patience(), owner="bench")
    limiter.open()
    while not limiter.is_shared:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.01)
    await line.renew()
    checks = plan.limiter_checks
    figures = {
        "ping_p50_us": await _p50(lambda: line.ask([("PING",)]), checks),
        "limiter_1_p50_us": await _p50(lambda: _take(limiter, _demands(1)), checks),
        "limiter_7_p50_us": await _p50(lambda: _take(limiter, _demands(7)), checks),
        "limiter_checks_per_s": await _rate(limiter, checks),
    }
    await limiter.close()
    await line.close()
    await valkey.close()
    return Results(figures=figures)


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


async def _p50(check: Callable[[], Awaitable[Any]], checks: int) -> float:
    times = []
    for _ in range(checks):
        start = time.perf_counter()
        await check()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


async def _rate(limiter: RedisLimiter, checks: int) -> float:
    demands = _demands(3)

    async def call() -> None:
        for _ in range(checks // _CALLERS + 1):
            await _take(limiter, demands)

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    return _CALLERS * (checks // _CALLERS + 1) / (time.perf_counter() - start)
