"""The patience that all callers of one process share with a Redis that hangs or refuses (contract 27)."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis

from contract.limiter_stage import limit, opened, until
from contract.samples import TENANT, message
from famulus_server.coordination import patience as patience_module
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.ports import Demand, Remembered


class Counted(Patience):
    """Counts the calls that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def wait(self) -> Any:
        self.calls += 1
        return super().wait()


class Stage(NamedTuple):
    """All that asks Redis for a caller."""

    log: RedisEventLog
    cache: RedisThreadCache
    limiter: RedisLimiter
    redis: Any
    patience: Counted

    async def ask_all(self) -> None:
        await self.log.read("run_1", after_sequence=0, limit=10)
        await self.cache.get(TENANT, "thread_1")
        await self.limiter.take([Demand(limit(most=1_000))])


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    valkey = EmbeddedValkey(data_dir=tmp_path)
    url = await valkey.start()
    patience = Counted()
    log, cache = RedisEventLog(url=url, patience=patience), RedisThreadCache(url=url, patience=patience)
    log.open()
    cache.open()
    remembered = message("msg_1")
    remembered.sequence = 1
    async with opened(url, "one", patience=patience) as limiter, Redis.from_url(url) as redis:
        cache.put(TENANT, "thread_1", Remembered(revision=0, floor=0, upto=1, messages=[remembered]))
        await cache.flush()
        made = Stage(log, cache, limiter, redis, patience)
        await made.ask_all()
        assert cache.hits == 1
        yield made
        await cache.close()
        await log.close()
    await valkey.close()


@pytest.fixture
async def frozen(stage: Stage) -> AsyncIterator[None]:
    process = int((await stage.redis.info("server"))["process_id"])
    os.kill(process, signal.SIGSTOP)
    yield
    os.kill(process, signal.SIGCONT)


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is left alone until the end of the test."""
    monkeypatch.setattr(patience_module, "_LEFT_ALONE_SECONDS", 3_600.0)


async def fail(patience: Patience, *, after: int = 0) -> None:
    with contextlib.suppress(RedisUnavailable), patience.wait():
        for _ in range(after):
            await asyncio.sleep(0)
        raise RedisUnavailable("no answer in time")


async def test_calls_that_began_before_a_failure_say_nothing_new() -> None:
    patience = Patience()
    await asyncio.gather(*(fail(patience, after=1 + number) for number in range(20)))
    assert not patience.is_over
    for _ in range(4):
        assert not patience.is_over
        await fail(patience)
    assert patience.is_over


@pytest.mark.usefixtures("stubborn", "frozen")
async def test_hung_redis_costs_five_waits_whatever_it_is_asked_for(stage: Stage) -> None:
    before = stage.patience.calls
    for _ in range(10):
        await stage.ask_all()
    assert stage.patience.calls == before + 5
    assert not stage.limiter.is_shared


@pytest.mark.usefixtures("stubborn", "frozen")
async def test_those_who_ask_at_once_wait_one_at_a_time_once_redis_may_hang(stage: Stage) -> None:
    before = stage.patience.calls
    await stage.ask_all()
    first = stage.patience.calls
    assert first == before + 3
    await asyncio.gather(*(stage.cache.get(TENANT, "thread_1") for _ in range(100)))
    # Of those who waited for their turn, the next one may try once more.
    assert stage.patience.calls <= before + 5


async def test_redis_that_refuses_to_count_is_read_all_the_same(stage: Stage) -> None:
    await stage.redis.config_set("maxmemory", 1)
    for _ in range(10):
        await stage.ask_all()
    assert not stage.limiter.is_shared
    assert not stage.patience.is_over
    assert stage.cache.hits == 11
    await stage.redis.config_set("maxmemory", "256mb")
    await until(lambda: stage.limiter.is_shared)
