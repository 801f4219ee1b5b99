"""How long clients wait."""

import grpc
import pytest

from famulus import FamulusError, RetryPolicy
from famulus.retry import Outage

AWAY = FamulusError("away", code=grpc.StatusCode.UNAVAILABLE)


class Clock:
    """A clock that tests move on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waits(policy: RetryPolicy, rand: float, count: int) -> list[float]:
    outage = Outage(policy, clock=Clock(), rand=lambda: rand)
    return [round(outage.delay(AWAY), 6) for _ in range(count)]


def test_waits_grow_up_to_a_limit() -> None:
    assert waits(RetryPolicy(initial_delay=1, max_delay=5), 0.5, 5) == [1, 2, 4, 5, 5]


def test_waits_differ_by_up_to_the_jitter() -> None:
    policy = RetryPolicy(initial_delay=1, jitter=0.5)
    assert waits(policy, 0.0, 2) == [0.5, 1.0]
    assert waits(policy, 1.0, 2) == [1.5, 3.0]


@pytest.mark.parametrize("rand", [0.0, 0.5, 1.0])
def test_nobody_comes_back_earlier_than_told(rand: float) -> None:
    outage = Outage(RetryPolicy(jitter=0.5), clock=Clock(), rand=lambda: rand)
    delay = outage.delay(FamulusError("full", code=grpc.StatusCode.UNAVAILABLE, retry_after=4.0))
    assert 4.0 <= delay <= 6.0


def test_patience_counts_from_the_first_failure_without_progress() -> None:
    clock = Clock()
    outage = Outage(RetryPolicy(give_up_after=10, jitter=0), clock=clock)
    outage.delay(AWAY)
    clock.now += 9
    outage.delay(AWAY)
    outage.over()
    clock.now += 9
    outage.delay(AWAY)
    clock.now += 10
    with pytest.raises(FamulusError, match="away"):
        outage.delay(AWAY)


def test_refusals_are_raised_at_once() -> None:
    with pytest.raises(FamulusError, match="no"):
        Outage(RetryPolicy()).delay(FamulusError("no", code=grpc.StatusCode.PERMISSION_DENIED))


@pytest.mark.parametrize(
    "wrong", [{"initial_delay": -1}, {"silence": 0}, {"multiplier": 0.5}, {"jitter": 2}, {"give_up_after": -1}]
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**wrong)
