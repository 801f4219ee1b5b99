"""The contract of a limiter: over Redis, and locally."""

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from contract.limiter_stage import Stopwatch, carried_out, limit, opened, taken, until
from famulus_server.coordination import exchange
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.local_limiter import LocalLimiter
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.ports import Demand, Limit, Limiter, Quantity, Refused

# The long form: 60.
_SECONDS = float(os.environ.get("FAMULUS_LIMITER_SECONDS", "2"))
_CALLERS = 32


@pytest.fixture(autouse=True)
def patient(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here is counted in Redis, also on machines that stand still now and then."""
    monkeypatch.setattr(exchange, "_TIMEOUT", 10.0)


@pytest.fixture
async def replicas(url: str) -> AsyncIterator[tuple[RedisLimiter, RedisLimiter]]:
    async with opened(url, "one") as one, opened(url, "other") as other:
        yield one, other


@pytest.fixture(params=["redis", "local"])
async def limiter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Limiter]:
    if request.param == "local":
        yield LocalLimiter(share=lambda: 1)
        return
    valkey = EmbeddedValkey(data_dir=tmp_path)
    async with opened(await valkey.start(), "one") as shared:
        yield shared
        assert shared.is_shared
    await valkey.close()


async def test_as_many_as_allowed_are_taken_at_once(limiter: Limiter) -> None:
    assert await taken(limiter, Demand(limit(most=3)), tries=5) == 3
    assert await taken(limiter, Demand(limit(most=3, subject="other")), tries=1) == 1


async def test_nothing_is_taken_where_one_limit_refuses(limiter: Limiter) -> None:
    free, scarce = limit(most=3), limit("tokens", most=1)
    places = limit("runs", most=3)
    demands = [Demand(free), Demand(scarce), Demand(places)]
    assert await limiter.take(demands, holder="run_1", seconds=60.0) is None
    for number in range(2, 6):
        refused = await limiter.take(demands, holder=f"run_{number}", seconds=60.0)
        assert refused is not None
        assert refused.limit == scarce
    assert await taken(limiter, Demand(free), tries=5) == 2
    holders = [await limiter.take([Demand(places)], holder=f"run_{number}", seconds=60.0) for number in range(2, 6)]
    assert holders.count(None) == 2


async def test_one_take_that_demands_a_limit_twice_takes_both(limiter: Limiter) -> None:
    twice = [Demand(limit(most=3), 2), Demand(limit(most=3), 2)]
    assert await limiter.take(twice) is not None
    assert await taken(limiter, Demand(limit(most=3)), tries=5) == 3


async def test_no_demands_are_always_granted(limiter: Limiter) -> None:
    assert await limiter.take([]) is None
    await limiter.pause([], seconds=60.0)
    limiter.release([], holder="run_1")
    limiter.settle([], key="run_1", used=5)


async def test_after_the_told_wait_there_is_enough(limiter: Limiter) -> None:
    quick, slow = limit(most=4, per_second=40.0), limit("tokens", most=100, per_second=500.0)
    demands = [Demand(quick), Demand(slow, 50)]
    refusals: list[Refused] = []
    for _ in range(8):
        refused = await limiter.take(demands)
        if refused is not None:
            refusals.append(refused)
            await asyncio.sleep(refused.retry_after)
            assert await limiter.take(demands) is None
    assert len(refusals) >= 4
    # The longest wait of several, so that the next refusal is not that of another limit.
    assert {refused.limit for refused in refusals} == {slow}
    assert all(0.0 < refused.retry_after <= 0.1 for refused in refusals)


async def test_demand_of_more_than_the_most_needs_all_of_it_and_leaves_debt(limiter: Limiter) -> None:
    tokens = limit("tokens", most=10, per_second=100.0)
    assert await limiter.take([Demand(tokens, 1)]) is None
    refused = await limiter.take([Demand(tokens, 25)])
    assert refused is not None
    await asyncio.sleep(refused.retry_after)
    assert await limiter.take([Demand(tokens, 25)]) is None
    refused = await limiter.take([Demand(tokens, 1)])
    assert refused is not None
    assert 0.1 < refused.retry_after <= 0.16


async def test_settling_gives_back_what_was_not_used_once(limiter: Limiter) -> None:
    demand = Demand(limit("tokens", most=10), 8)
    assert await limiter.take([demand]) is None
    limiter.settle([demand], key="run_1/1", used=3)
    limiter.settle([demand], key="run_1/1", used=3)
    assert await taken(limiter, Demand(demand.limit), tries=12) == 7


async def test_settling_charges_what_was_used_beyond_once(limiter: Limiter) -> None:
    demand = Demand(limit("tokens", most=10, per_second=100.0), 2)
    assert await limiter.take([demand]) is None
    for _ in range(2):
        limiter.settle([demand, Demand(limit(most=10))], key="run_1/1", used=32)
    refused = await limiter.take([Demand(demand.limit)])
    assert refused is not None
    assert 0.15 < refused.retry_after <= 0.23
    # Requests are not settled.
    assert await taken(limiter, Demand(limit(most=10)), tries=12) == 10


async def test_what_was_never_taken_is_not_given_back(limiter: Limiter) -> None:
    demand = Demand(limit("tokens", most=3), 50)
    limiter.settle([demand], key="run_1/1", used=0)
    assert await taken(limiter, Demand(demand.limit), tries=5) == 3


async def test_places_are_held_until_they_are_released(limiter: Limiter) -> None:
    places = limit("runs", most=2)
    demand = [Demand(places)]
    assert await limiter.take(demand, holder="run_1", seconds=60.0) is None
    assert await limiter.take(demand, holder="run_2", seconds=60.0) is None
    refused = await limiter.take(demand, holder="run_3", seconds=60.0)
    assert refused == Refused(places, 1.0)
    limiter.release([places, limit("runs", subject="other")], holder="run_1")
    limiter.release([places], holder="run_1")
    limiter.release([places], holder="nobody")
    assert await limiter.take(demand, holder="run_3", seconds=60.0) is None
    assert await limiter.take(demand, holder="run_1", seconds=60.0) is not None


async def test_what_nobody_waits_for_goes_with_the_next_question_and_before_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_UNHURRIED_SECONDS", 60.0)
    redis: Any
    demands = [Demand(limit("tokens", most=1)), Demand(limit("runs", most=1))]
    async with opened(url, "one") as one, Redis.from_url(url) as redis:
        assert await one.take(demands, holder="run_1", seconds=60.0) is None
        before = await redis.info("stats")
        one.settle(demands, key="run_1/1", used=0, holder="run_1")
        one.release([Limit("user", "acme/ann", "runs", 1)], holder="run_1")
        assert await one.take(demands, holder="run_2", seconds=60.0) is None
        after = await redis.info("stats")
    # This process's own, and those two looks.
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2


@pytest.mark.parametrize("quantities", [("tokens", "runs"), ("runs",)])
async def test_settling_gives_the_places_of_its_holder_back(limiter: Limiter, quantities: tuple[Quantity, ...]) -> None:
    demands = [Demand(limit(quantity, most=1)) for quantity in quantities]
    assert await limiter.take(demands, holder="run_1", seconds=60.0, key="run_1/1") is None
    limiter.settle(demands, key="run_1/1", used=0)
    assert await limiter.take(demands, holder="run_2", seconds=60.0) is not None
    for _ in range(2):
        # Also where it was settled before.
        limiter.settle(demands, key="run_1/1", used=0, holder="run_1")
    assert await limiter.take(demands, holder="run_2", seconds=60.0) is None
    assert await limiter.take(demands, holder="run_1", seconds=60.0) is not None


async def test_holder_of_a_place_takes_no_other(limiter: Limiter) -> None:
    demand = [Demand(limit("runs", most=2))]
    for _ in range(3):
        assert await limiter.take(demand, holder="run_1", seconds=60.0) is None
    assert await limiter.take(demand, holder="run_2", seconds=60.0) is None
    for _ in range(2):
        assert await limiter.take(demand, holder="run_1", seconds=60.0) is None
    assert await limiter.take(demand, holder="run_3", seconds=60.0) is not None


async def test_places_are_free_again_when_their_time_is_over(limiter: Limiter) -> None:
    demand = [Demand(limit("runs", most=1))]
    assert await limiter.take(demand, holder="run_1", seconds=0.2) is None
    refused = await limiter.take(demand, holder="run_2", seconds=60.0)
    assert refused is not None
    assert 0.0 < refused.retry_after <= 0.2
    await asyncio.sleep(refused.retry_after)
    assert await limiter.take(demand, holder="run_2", seconds=60.0) is None


async def test_holder_that_comes_again_holds_on_longer(limiter: Limiter) -> None:
    demand = [Demand(limit("runs", most=1))]
    for seconds in (0.1, 60.0, 0.1):
        assert await limiter.take(demand, holder="run_1", seconds=seconds) is None
    assert await limiter.take(demand, holder="run_2", seconds=60.0) == Refused(demand[0].limit, 1.0)


async def test_observing_shrinks_and_never_grows(limiter: Limiter) -> None:
    requests = limit(most=10)
    await limiter.observe(requests, left=4)
    await limiter.observe(requests, left=9)
    assert await taken(limiter, Demand(requests), tries=12) == 4
    await limiter.observe(requests, left=8)
    assert await taken(limiter, Demand(requests), tries=2) == 0


async def test_pause_holds_for_all_kinds_of_limits_and_is_not_shortened(limiter: Limiter) -> None:
    limits = [limit("requests"), limit("tokens"), limit("runs")]
    assert await limiter.take([Demand(limits[2])], holder="run_1", seconds=60.0) is None
    await limiter.pause(limits, seconds=0.3)
    await limiter.pause(limits, seconds=0.001)
    waits = []
    for one in limits:
        refused = await limiter.take([Demand(one)], holder="run_2", seconds=60.0)
        assert refused is not None
        waits.append(refused.retry_after)
    assert all(0.1 < wait <= 0.302 for wait in waits)
    # Who has a place already keeps it.
    assert await limiter.take([Demand(limits[2])], holder="run_1", seconds=60.0) is None
    await asyncio.sleep(max(waits))
    assert await limiter.take([Demand(one) for one in limits], holder="run_2", seconds=60.0) is None


@pytest.mark.parametrize("seconds", [1_763_838_427.0, 1e300, math.inf])
async def test_pause_is_over_after_a_minute(limiter: Limiter, seconds: float) -> None:
    requests = limit(most=10)
    await limiter.pause([requests], seconds=seconds)
    refused = await limiter.take([Demand(requests)])
    assert refused is not None
    assert 50.0 < refused.retry_after <= 60.002


async def test_replicas_share_what_is_taken_settled_observed_and_paused(
    replicas: tuple[RedisLimiter, RedisLimiter],
) -> None:
    one, other = replicas
    tokens = Demand(limit("tokens", most=10), 8)
    assert await one.take([tokens]) is None
    assert await other.take([tokens]) is not None
    one.settle([tokens], key="run_1/1", used=1)
    await carried_out(one)
    other.settle([tokens], key="run_1/1", used=1)
    assert await other.take([tokens]) is None
    requests = limit(most=10)
    await one.observe(requests, left=2)
    assert await taken(other, Demand(requests), tries=4) == 2
    model = Limit("model", "gpt", "requests", 10, 1.0)
    await other.pause([model], seconds=60.0)
    refused = await one.take([Demand(model)])
    assert refused is not None
    assert 50.0 < refused.retry_after <= 60.001
    places = [Demand(limit("runs", most=1))]
    assert await one.take(places, holder="run_1", seconds=60.0) is None
    assert await other.take(places, holder="run_2", seconds=60.0) is not None
    other.release([places[0].limit], holder="run_1")
    assert await other.take(places, holder="run_2", seconds=60.0) is None


@pytest.mark.timeout(120 + int(_SECONDS))
async def test_many_callers_on_two_replicas_get_no_more_than_is_allowed(
    replicas: tuple[RedisLimiter, RedisLimiter],
) -> None:
    requests, tokens = limit(most=50, per_second=200.0), limit("tokens", most=4_000, per_second=15_000.0)
    demands = [Demand(requests), Demand(tokens, 80)]
    started = time.monotonic()

    async def call(number: int) -> int:
        granted = 0
        while time.monotonic() - started < _SECONDS:
            refused = await replicas[number % 2].take(demands)
            if refused is None:
                granted += 1
            else:
                # Too early, some of the time.
                await asyncio.sleep(refused.retry_after * (number % 4) / 2)
        return granted

    granted = sum(await asyncio.gather(*(call(number) for number in range(_CALLERS))))
    elapsed = time.monotonic() - started
    assert all(replica.is_shared for replica in replicas)
    assert granted <= 50 + 200.0 * elapsed
    assert granted * 80 <= 4_000 + 15_000.0 * elapsed
    # It is not that nothing was granted: the tokens are what is scarce.
    assert granted * 80 > 0.5 * (4_000 + 15_000.0 * elapsed)


async def test_replicas_know_of_each_other_and_of_who_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("famulus_server.coordination.limiter._ROUND_SECONDS", 0.02)
    async with opened(url, "one") as one:
        assert one.replicas == 1
        async with opened(url, "other") as other:
            await until(lambda: one.replicas == other.replicas == 2)
        await until(lambda: one.replicas == 1)


async def test_all_keys_are_in_one_place_of_a_cluster_and_expire(url: str) -> None:
    redis: Any
    demands = [Demand(limit("requests")), Demand(limit("tokens", subject="{a}/{b}")), Demand(limit("runs"))]
    async with opened(url, "one") as one, Redis.from_url(url) as redis:
        assert await one.take(demands, holder="run_1", seconds=60.0) is None
        one.settle(demands, key="run_1/1", used=3)
        await one.pause([demand.limit for demand in demands], seconds=60.0)
        keys = await redis.keys("*")
        assert len(keys) == 3 + 3 + 2
        slots = {await redis.execute_command("CLUSTER", "KEYSLOT", key) for key in keys}
        assert len(slots) == 1
        assert all([await redis.pttl(key) > 0 for key in keys])
        one.release([demand.limit for demand in demands], holder="run_1")
        await one.pause([limit("requests")], seconds=60.0)
        assert await redis.keys("*:runs:*") == [b"famulus:{limits}:paused:tenant:runs:acme"]


async def test_cancelled_caller_leaves_the_connection_to_the_others(url: str) -> None:
    demand = Demand(limit(most=10_000))
    async with opened(url, "one") as one:
        for _ in range(20):
            callers = [asyncio.create_task(one.take([demand])) for _ in range(10)]
            await asyncio.sleep(0)
            for caller in callers[::2]:
                caller.cancel()
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert answers[1::2] == [None] * 5
        assert one.is_shared


async def test_closed_limiter_has_settled_and_released(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_UNHURRIED_SECONDS", 60.0)
    tokens, places = Demand(limit("tokens", most=10), 10), Demand(limit("runs", most=1))
    async with opened(url, "other") as other:
        async with opened(url, "one") as one:
            assert await one.take([tokens, places], holder="run_1", seconds=600.0) is None
            one.settle([tokens], key="run_1/1", used=0)
            one.release([places.limit], holder="run_1")
        assert await other.take([tokens, places], holder="run_2", seconds=600.0) is None


async def test_places_that_redis_has_given_are_known_for_a_minute_at_most(url: str) -> None:
    clock = Stopwatch()
    demands = [Demand(limit("runs", most=10_000))]
    async with opened(url, "one") as one:
        one._local._clock = clock
        for number in range(4_000):
            clock.seconds += 1.0
            assert await one.take(demands, holder=f"run_{number}", seconds=3_600.0) is None
        # Nobody has given one back here.
        assert sum(map(len, one._local._holders.values())) < 2_500


async def test_cancelled_take_holds_no_place(url: str) -> None:
    places = [Demand(limit("runs", most=1))]
    async with opened(url, "one") as one:
        for turns in range(8):
            # At any point of its way: before it is sent, on the way, answered.
            caller = asyncio.create_task(one.take(places, holder=f"run_{turns}", seconds=600.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            [answer] = await asyncio.gather(caller, return_exceptions=True)
            if answer is None:
                one.release([places[0].limit], holder=f"run_{turns}")
        assert await one.take(places, holder="run", seconds=600.0) is None
        # Who holds a place already keeps it.
        caller = asyncio.create_task(one.take(places, holder="run", seconds=600.0))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert await one.take(places, holder="other", seconds=600.0) is not None
