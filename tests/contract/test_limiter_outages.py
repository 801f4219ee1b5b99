"""Limits while Redis is away, hangs or refuses: kept locally, and shared again when it is back (contract 2, 27)."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from contract.freezing import frozen, process_of
from contract.limiter_stage import carried_out, limit, opened, taken, until
from famulus_server.coordination import exchange, limiter, patience
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.exchange import Exchange
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.ports import Demand

LOST, FOUND = "limits unreachable", "limits reachable again"
SILENT = "Redis unreachable"
LIMITS = [limit("requests"), limit("tokens"), limit("runs")]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is left alone for less than 5 seconds: what happens then is the same."""
    monkeypatch.setattr(patience, "_LEFT_ALONE_SECONDS", 0.1)


@pytest.fixture
async def one(url: str) -> AsyncIterator[RedisLimiter]:
    async with opened(url, "one") as opened_one:
        yield opened_one


def events_in(told: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in told]


async def take_until_local(shared: RedisLimiter, demand: Demand) -> tuple[int, int]:
    """How many takes it was until limits were not shared any more, and how many of them were granted."""
    calls = granted = 0
    while shared.is_shared:
        calls += 1
        granted += await taken(shared, demand, tries=1)
        # A local answer does not wait for anything.
        await asyncio.sleep(0)
    return calls, granted


async def test_hung_redis_costs_five_calls_and_nothing_is_allowed_twice(one: RedisLimiter, redis: Any) -> None:
    demand = Demand(limit(most=20))
    granted = await taken(one, demand, tries=4)
    process = await process_of(redis)
    with capture_logs() as told:
        with frozen(process):
            calls, more = await take_until_local(one, demand)
            granted += more + await taken(one, demand, tries=6)
            assert granted == 4 + calls + 6
        await until(lambda: one.is_shared)
    assert calls <= 5
    granted += await taken(one, demand, tries=30)
    assert granted == 20
    assert events_in(told) == [SILENT, LOST, FOUND]


async def test_hung_redis_makes_many_callers_wait_once(
    one: RedisLimiter, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0
    ask = Exchange.ask

    async def counted(self: Exchange, command: Any, **how: bool) -> Any:
        nonlocal waited
        try:
            return await ask(self, command, **how)
        except RedisUnavailable as error:
            waited += str(error) == "no answer in time"
            raise

    monkeypatch.setattr(Exchange, "ask", counted)
    demand = Demand(limit(most=100_000))
    process = await process_of(redis)
    with frozen(process):
        await asyncio.gather(*(take_until_local(one, demand) for _ in range(32)))
    # All of the first round, then one at a time.
    assert 0 < waited <= 32 + 4


async def test_short_stall_keeps_the_limits_shared(one: RedisLimiter, redis: Any) -> None:
    demand = Demand(limit(most=10))
    process = await process_of(redis)
    with capture_logs() as told:
        with frozen(process):
            granted = await taken(one, demand, tries=2)
        await redis.ping()
        granted += await taken(one, demand, tries=20)
    # What was allowed meanwhile has been counted.
    assert granted == 10
    assert told == []


async def test_process_that_stands_still_does_not_blame_redis(one: RedisLimiter) -> None:
    demand = Demand(limit(most=100))
    with capture_logs() as told:
        for _ in range(8):
            taking = asyncio.create_task(taken(one, demand, tries=1))
            # Until it is sent.
            for _ in range(5):
                await asyncio.sleep(0)
            time.sleep(0.07)  # noqa: ASYNC251 - that is what is tested
            assert await taking == 1
    assert one.is_shared
    assert told == []


async def test_killed_redis_that_is_back_empty_is_told_what_was_taken(
    one: RedisLimiter, redis: Any, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    demand = Demand(limit(most=20))
    granted = await taken(one, demand, tries=4)
    with capture_logs() as told:
        os.kill(await process_of(redis), signal.SIGKILL)
        await valkey.exited()
        calls, more = await take_until_local(one, demand)
        granted += more + await taken(one, demand, tries=3)
        assert granted == 4 + calls + 3
        shutil.rmtree(tmp_path / "valkey" / "appendonlydir")
        await valkey.start()
        await until(lambda: one.is_shared)
    assert calls <= 5
    granted += await taken(one, demand, tries=30)
    assert granted == 20
    assert events_in(told) == [LOST, FOUND]


async def test_connection_that_was_lost_unnoticed_is_no_fresh_start(one: RedisLimiter, redis: Any) -> None:
    demand = Demand(limit(most=10))
    granted = await taken(one, demand, tries=4)
    await redis.flushall()
    await redis.client_kill_filter(_type="normal", skipme=True)
    granted += await taken(one, demand, tries=1)
    await until(lambda: one.is_shared)
    granted += await taken(one, demand, tries=20)
    assert granted == 10


@pytest.mark.parametrize(
    ("broken", "healed"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 256mb"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    ],
)
async def test_redis_that_refuses_to_write_counts_as_away(
    one: RedisLimiter, redis: Any, broken: str, healed: str
) -> None:
    demand, held = Demand(limit(most=20)), [Demand(LIMITS[2])]
    granted = await taken(one, demand, tries=4)
    assert await one.take(held, holder="run_1", seconds=60.0) is None
    with capture_logs() as told:
        await redis.execute_command(*broken.split())
        calls, more = await take_until_local(one, demand)
        granted += more + await taken(one, demand, tries=30)
        one.settle([Demand(LIMITS[1])], key="run_1/1", used=3)
        await one.observe(LIMITS[0], left=1)
        await one.pause(LIMITS, seconds=0.0)
        one.release([LIMITS[2]], holder="run_1")
        await redis.execute_command(*healed.split())
        await until(lambda: one.is_shared)
    assert calls <= 5
    assert granted + await taken(one, demand, tries=5) == 20
    assert events_in(told) == [LOST, FOUND]


async def test_forgotten_scripts_are_no_failure(one: RedisLimiter, redis: Any) -> None:
    demand = Demand(limit(most=10))
    granted = await taken(one, demand, tries=4)
    await redis.script_flush()
    assert granted + await taken(one, demand, tries=20) == 10
    assert one.is_shared


async def test_foreign_kinds_of_keys_are_overwritten(one: RedisLimiter, redis: Any) -> None:
    demands = [Demand(one_of_them) for one_of_them in LIMITS]
    assert await one.take(demands, holder="run_1", seconds=60.0) is None
    await one.pause(LIMITS, seconds=0.01)
    one.settle(demands, key="run_1/1", used=1)
    await carried_out(one)
    for key in await redis.keys("*"):
        was_string = await redis.type(key) == b"string"
        await redis.delete(key)
        await (redis.lpush if was_string else redis.set)(key, "foreign")
    for number in range(5):
        answers = await one.take(demands, holder=f"run_{number}", seconds=60.0)
        assert (answers is None) == (number < 3)
    one.settle(demands, key="run_1/1", used=1)
    await one.pause(LIMITS, seconds=0.01)
    one.release([LIMITS[2]], holder="run_2")
    await carried_out(one)
    assert one.is_shared


@pytest.mark.parametrize("foreign", ["inf", "-inf", "nan", "1e300", "-5", "0x10", "", "abc"])
async def test_what_is_no_moment_is_nothing(one: RedisLimiter, redis: Any, foreign: str) -> None:
    demands = [Demand(one_of_them) for one_of_them in LIMITS]
    assert await one.take(demands, holder="run_1", seconds=60.0) is None
    await one.pause(LIMITS, seconds=0.01)
    for key in await redis.keys("*"):
        if await redis.type(key) == b"string":
            await redis.set(key, foreign)
    assert await one.take(demands, holder="run_2", seconds=60.0) is None
    one.settle(demands, key="run_2/1", used=1)
    await one.pause(LIMITS, seconds=0.01)
    assert one.is_shared


async def test_each_replica_keeps_to_its_share(url: str, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_ROUND_SECONDS", 0.02)
    requests, runs = Demand(limit(most=9)), [Demand(limit("runs", most=5))]
    async with opened(url, "one") as one, opened(url, "other") as other:
        await until(lambda: one.replicas == other.replicas == 2)
        os.kill(await process_of(redis), signal.SIGKILL)
        await until(lambda: not one.is_shared and not other.is_shared)
        assert await taken(one, requests, tries=9) + await taken(other, requests, tries=9) == 8
        for replica in (one, other):
            holders = [await replica.take(runs, holder=f"run_{number}", seconds=60.0) for number in range(5)]
            assert holders.count(None) == 2


async def test_places_given_back_meanwhile_are_free_when_redis_is_back(
    one: RedisLimiter, url: str, redis: Any, valkey: EmbeddedValkey
) -> None:
    places = limit("runs", most=1)
    async with opened(url, "other") as other:
        assert await one.take([Demand(places)], holder="run_1", seconds=600.0) is None
        os.kill(await process_of(redis), signal.SIGKILL)
        await valkey.exited()
        await until(lambda: not one.is_shared)
        one.release([places], holder="run_1")
        await valkey.start()
        await until(lambda: one.is_shared and other.is_shared)
        assert await other.take([Demand(places)], holder="run_2", seconds=60.0) is None


async def test_what_was_told_when_the_connection_broke_is_carried_out(
    one: RedisLimiter, url: str, redis: Any, valkey: EmbeddedValkey
) -> None:
    tokens, places = Demand(limit("tokens", most=10), 10), Demand(limit("runs", most=1))
    assert await one.take([tokens, places], holder="run_1", seconds=600.0) is None
    process = await process_of(redis)
    os.kill(process, signal.SIGSTOP)
    one.settle([tokens, places], key="run_1/1", used=1, holder="run_1")
    # It is sent, and not answered.
    await carried_out(one)
    os.kill(process, signal.SIGKILL)
    await valkey.exited()
    await until(lambda: not one.is_shared)
    assert await one.take([Demand(tokens.limit, 9)]) is None
    await valkey.start()
    await until(lambda: one.is_shared)
    async with opened(url, "other") as other:
        assert await other.take([places], holder="run_2", seconds=60.0) is None


async def test_places_given_back_while_the_connection_is_made_are_free_behind_it(
    one: RedisLimiter, url: str, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, join = limit("runs", most=1), Exchange.join
    assert await one.take([Demand(places)], holder="run_1", seconds=600.0) is None

    async def joining(self: Exchange, commands: Any) -> Any:
        one.release([places], holder="run_1")
        return await join(self, commands)

    monkeypatch.setattr(Exchange, "join", joining)
    await redis.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: not one.is_shared)
    await until(lambda: one.is_shared)
    await carried_out(one)
    async with opened(url, "other") as other:
        assert await other.take([Demand(places)], holder="run_2", seconds=60.0) is None


async def test_answer_that_does_not_come_takes_no_place_that_was_taken_behind_it(
    url: str, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_TIMEOUT", 0.3)
    turn = [Demand(limit("tokens", most=1_000)), Demand(limit("runs", most=1))]
    async with opened(url, "one") as one:
        assert await one.take(turn, holder="run_1", seconds=600.0) is None
        with frozen(await process_of(redis)):
            one.settle(turn, key="run_1/1", used=1, holder="run_1")
            # Its next turn.
            assert await one.take(turn, holder="run_1", seconds=600.0) is None
            await until(lambda: not one.is_shared)
            assert await one.take(turn, holder="run_2", seconds=600.0) is not None
        await until(lambda: one.is_shared)
        assert await one.take(turn, holder="run_2", seconds=600.0) is not None


async def test_next_connection_knows_nothing_of_what_the_last_one_has_lost(
    url: str, redis: Any, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_TIMEOUT", 0.3)
    demand = Demand(limit(most=10))
    async with opened(url, "one") as one:
        process = await process_of(redis)
        os.kill(process, signal.SIGSTOP)
        # One that is sent, one that waits for its answer, and one that nobody hurries.
        callers = []
        for _ in range(2):
            callers.append(asyncio.create_task(taken(one, demand, tries=1)))
            for _ in range(3):
                await asyncio.sleep(0)
        one.release([LIMITS[2]], holder="run_1")
        os.kill(process, signal.SIGKILL)
        assert await asyncio.gather(*callers) == [1, 1]
        await valkey.exited()
        await valkey.start()
        await until(lambda: one.is_shared)
        with capture_logs() as told:
            async with opened(url, "other") as other:
                assert await taken(one, demand, tries=8) == 8
                assert await taken(other, demand, tries=1) == 0
                # Longer than it takes to give an answer up.
                await asyncio.sleep(0.4)
                assert one.is_shared
        assert told == []


@pytest.mark.parametrize(
    ("foreign", "left"),
    # Of them, the second has granted it, and answers once more.
    [(b"+OK\r\n", 8), (b"$3\r\n0 0\r\n:0\r\n", 9), (b"HTTP/1.1 400 Bad Request\r\n\r\n", 8)],
)
async def test_what_redis_would_not_answer_costs_the_connection_only(
    url: str, tmp_path: Path, foreign: bytes, left: int
) -> None:
    connections = 0
    closed = asyncio.Event()

    async def interpose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes all on, until it says something else instead."""
        nonlocal connections
        connections += 1
        is_first = connections == 1
        from_redis, to_redis = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        while data := await reader.read(65_536):
            if is_first and b"MGET" in data:
                writer.write(foreign)
                continue
            to_redis.write(data)
            writer.write(await from_redis.read(65_536))
        to_redis.close()
        await to_redis.wait_closed()
        writer.close()
        closed.set()

    address = f"{tmp_path}/between.sock"
    demand = Demand(limit(most=9))
    async with await asyncio.start_unix_server(interpose, address), opened(f"unix://{address}", "one") as one:
        assert await taken(one, demand, tries=1) == 1
        await closed.wait()
        await until(lambda: one.is_shared)
        assert await taken(one, demand, tries=10) == left
        assert connections == 2


async def test_redis_that_is_full_is_told_of_places_given_back(url: str, one: RedisLimiter, redis: Any) -> None:
    demands = [Demand(limit("tokens", most=9), 1), Demand(limit("runs", most=1))]
    async with opened(url, "other") as other:
        assert await one.take(demands, holder="run_1", seconds=600.0) is None
        await redis.config_set("maxmemory", 1)
        one.settle(demands, key="run_1/1", used=1, holder="run_1")
        await carried_out(one)
        await redis.config_set("maxmemory", "256mb")
        await until(lambda: one.is_shared and other.is_shared)
        assert await other.take(demands, holder="run_2", seconds=60.0) is None
