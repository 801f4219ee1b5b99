"""How limiters begin and end with Redis."""

import asyncio
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from contract.limiter_stage import limit, opened, taken, until
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.ports import Demand


async def test_url_on_which_nothing_listens_costs_nothing(tmp_path: Path) -> None:
    alone = RedisLimiter(url=f"unix://{tmp_path}/nobody.sock", patience=Patience(), owner="one")
    with capture_logs() as told:
        assert await taken(alone, Demand(limit(most=3)), tries=1) == 1
        alone.open()
        await until(lambda: bool(told))
        assert await taken(alone, Demand(limit(most=3)), tries=5) == 2
        await alone.close()
    assert [entry["event"] for entry in told] == ["limits unreachable"]


async def test_url_that_nobody_understands_is_told_without_its_secrets() -> None:
    alone = RedisLimiter(url="redis://:secret/1@nowhere", patience=Patience(), owner="one")
    with capture_logs() as told:
        alone.open()
        await until(lambda: bool(told))
        assert await taken(alone, Demand(limit(most=3)), tries=5) == 3
        await alone.close()
    assert [entry["event"] for entry in told] == ["limits cannot be shared"]
    assert "secret" not in str(told)


async def test_closed_limiter_leaves_no_task_and_no_connection(url: str, redis: Any) -> None:
    tasks = asyncio.all_tasks()
    unopened = RedisLimiter(url=url, patience=Patience(), owner="one")
    await unopened.close()
    unopened.open()
    await asyncio.sleep(0)
    await unopened.close()
    async with opened(url, "other"):
        assert await redis.zcard("famulus:{limits}:replicas") == 1
    assert asyncio.all_tasks() == tasks
    assert await redis.zcard("famulus:{limits}:replicas") == 0
    async with asyncio.timeout(5.0):
        while len(await redis.client_list()) != 1:
            pass
