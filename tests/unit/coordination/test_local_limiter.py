"""Limits kept locally: never more than is allowed, waits that are true, and no more memory than needed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.limiter_stage import Stopwatch
from famulus_server.coordination import buckets, local_limiter
from famulus_server.coordination.local_limiter import LocalLimiter
from famulus_server.ports import Demand, Limit

T = TypeVar("T")

TOKENS = Limit("tenant", "acme", "tokens", 100, 8.0)
REQUESTS = Limit("tenant", "acme", "requests", 5, 0.5)
RUNS = Limit("tenant", "acme", "runs", 4)


class Stage:
    """A limiter whose clock and share a test sets."""

    def __init__(self, *, share: int = 1) -> None:
        self.clock = Stopwatch()
        self.share = share
        self.limiter = LocalLimiter(share=lambda: self.share, clock=self.clock)

    async def granted(self, limit: Limit, *, tries: int) -> int:
        answers = [await self.limiter.take([Demand(limit)]) for _ in range(tries)]
        return answers.count(None)


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner() as runner:
        return runner.run(work)


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 100)), max_size=60),
    most=st.integers(1, 1_000),
    per_minute=st.integers(1, 100_000),
    share=st.integers(1, 7),
)
def test_never_more_than_rate_times_time_and_a_burst(
    steps: list[tuple[float, int]], most: int, per_minute: int, share: int
) -> None:
    stage = Stage(share=share)
    limit = Limit("tenant", "acme", "tokens", most, per_minute / 60)
    taken: list[tuple[float, int]] = []

    async def take_all() -> None:
        for seconds, amount in steps:
            stage.clock.seconds += seconds
            # More than the most becomes debt, which is another test.
            wanted = min(amount, max(1, most // share))
            if await stage.limiter.take([Demand(limit, wanted)]) is None:
                taken.append((stage.clock.seconds, wanted))

    run(take_all())
    rate = per_minute / 60 / share
    for first, (start, _) in enumerate(taken):
        total = 0
        for now, amount in taken[first:]:
            total += amount
            # A share of less than one is one. The clock counts whole microseconds.
            assert total <= max(1.0, most / share) + rate * (now - start + 2e-6) + 1e-6


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 300), st.integers(0, 300)), max_size=40),
    share=st.integers(1, 3),
)
def test_after_the_told_wait_all_demands_are_granted(steps: list[tuple[float, int, int]], share: int) -> None:
    async def wait_and_take() -> None:
        stage = Stage(share=share)
        for number, (seconds, amount, used) in enumerate(steps):
            stage.clock.seconds += seconds
            demands = [Demand(TOKENS, amount), Demand(REQUESTS)]
            refused = await stage.limiter.take(demands)
            if refused is not None:
                # The last microsecond is the clock's: it counts whole ones.
                stage.clock.seconds += refused.retry_after + 1e-6
                assert await stage.limiter.take(demands) is None
            stage.limiter.settle(demands, key=str(number), used=used)

    run(wait_and_take())


async def test_refused_take_could_not_have_come_earlier() -> None:
    stage = Stage()
    assert await stage.granted(REQUESTS, tries=9) == 5
    refused = await stage.limiter.take([Demand(REQUESTS)])
    assert refused is not None
    assert refused.retry_after == 2.0
    stage.clock.seconds += 1.999
    assert await stage.granted(REQUESTS, tries=1) == 0
    stage.clock.seconds += 0.001
    assert await stage.granted(REQUESTS, tries=2) == 1


async def test_share_is_that_of_the_moment() -> None:
    stage = Stage(share=5)
    assert await stage.granted(REQUESTS, tries=9) == 1
    stage.clock.seconds += 60.0
    stage.share = 1
    assert await stage.granted(REQUESTS, tries=9) == 5


async def test_share_of_less_than_one_is_one_at_a_time() -> None:
    stage = Stage(share=10)
    assert await stage.granted(REQUESTS, tries=3) == 1
    stage.clock.seconds += 19.9
    assert await stage.granted(REQUESTS, tries=3) == 0
    stage.clock.seconds += 0.2
    assert await stage.granted(REQUESTS, tries=3) == 1
    for number in range(3):
        refused = await stage.limiter.take([Demand(RUNS)], holder=f"run_{number}", seconds=60.0)
        assert (refused is None) == (number == 0)


async def test_what_others_have_found_is_where_it_goes_on() -> None:
    stage = Stage(share=2)
    # Of 100 tokens 60 are left, for both.
    stage.limiter.remember({buckets.name_of(TOKENS): buckets.price_of(TOKENS, 40)})
    stage.limiter.hold([RUNS, TOKENS], holder="run_1", seconds=60.0)
    assert await stage.limiter.take([Demand(TOKENS, 31)]) is not None
    assert await stage.limiter.take([Demand(TOKENS, 30)]) is None
    assert await stage.granted(TOKENS, tries=1) == 0
    assert stage.limiter.holds(RUNS, "run_1")
    assert await stage.limiter.take([Demand(RUNS)], holder="run_2", seconds=60.0) is None
    assert await stage.limiter.take([Demand(RUNS)], holder="run_3", seconds=60.0) is not None
    assert [name for name, _ in stage.limiter.debts()] == [buckets.name_of(TOKENS)]
    stage.clock.seconds += 3_600.0
    assert list(stage.limiter.debts()) == []


async def test_what_means_nothing_any_more_is_forgotten() -> None:
    stage = Stage()
    for number in range(20_000):
        stage.clock.seconds += 1.0
        user = f"acme/user_{number}"
        demands = [Demand(Limit("user", user, "tokens", 10, 1.0), 5), Demand(Limit("user", user, "runs", 1))]
        assert await stage.limiter.take(demands, holder=f"run_{number}", seconds=5.0) is None
        await stage.limiter.pause([demands[1].limit], seconds=1.0)
    # Of 20,000 users no more than a few mean something at a time.
    assert stage.limiter._size() < 4 * local_limiter._ROOM


async def test_holders_that_nobody_releases_are_forgotten() -> None:
    stage = Stage()
    many = Limit("tenant", "acme", "runs", 100_000)
    for number in range(20_000):
        stage.clock.seconds += 1.0
        stage.limiter.hold([many], holder=f"run_{number}", seconds=60.0)
    assert sum(map(len, stage.limiter._holders.values())) < 4 * local_limiter._ROOM


async def test_of_what_others_have_charged_no_more_is_given_back() -> None:
    stage = Stage(share=3)
    taken = Demand(TOKENS, 50)
    stage.limiter.remember({buckets.name_of(TOKENS): buckets.price_of(TOKENS, 90)})
    stage.limiter.settle([taken], key="run_1", used=20)
    assert dict(stage.limiter.debts()) == {buckets.name_of(TOKENS): buckets.price_of(TOKENS, 60)}


async def test_what_was_taken_here_is_given_back_at_the_price_it_was_taken_at() -> None:
    stage = Stage(share=3)
    taken = Demand(TOKENS, 30)
    assert await stage.limiter.take([taken], key="run_1") is None
    # Another replica has left meanwhile.
    stage.share = 2
    stage.limiter.settle([taken], key="run_1", used=20)
    assert dict(stage.limiter.debts()) == {buckets.name_of(TOKENS): 3 * buckets.price_of(TOKENS, 20)}


async def test_settlement_is_known_for_an_hour() -> None:
    stage = Stage()
    demand = Demand(TOKENS, 50)
    for _ in range(2):
        stage.limiter.settle([demand], key="run_1/1", used=150)
    refused = await stage.limiter.take([Demand(TOKENS, 100)])
    assert refused is not None
    assert refused.retry_after == buckets.to_seconds(buckets.price_of(TOKENS, 150) - buckets.price_of(TOKENS, 50))
    stage.clock.seconds += 3_601.0
    stage.limiter.settle([demand], key="run_1/1", used=150)
    assert await stage.limiter.take([Demand(TOKENS, 100)]) is not None
