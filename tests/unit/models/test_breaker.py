"""When a breaker opens, and when it closes. The clock is the test's own."""

import pytest
from structlog.testing import capture_logs

from famulus_server.errors import ModelSuspended
from famulus_server.models.breaker import Breaker, BreakerState, Phase
from famulus_server.models.settings import BreakerSettings

SETTINGS = BreakerSettings(window_seconds=30.0, min_calls=4, failure_share=0.5, open_seconds=5.0, max_open_seconds=12.0)


class Subject:
    """A breaker, and a clock that stands still."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.breaker = Breaker(model="m", settings=SETTINGS, now=lambda: self.time)

    def call(self, outcome: str) -> None:
        """One call from its beginning to its end: `.` succeeded, `x` failed, `-` neither."""
        number = self.breaker.admit()
        if outcome == ".":
            self.breaker.succeed(number)
        elif outcome == "x":
            self.breaker.fail(number)
        self.breaker.leave(number)

    def calls(self, outcomes: str) -> Phase:
        for outcome in outcomes:
            self.call(outcome)
        return self.breaker.phase

    def refusal(self) -> float | None:
        with pytest.raises(ModelSuspended) as caught:
            self.breaker.admit()
        assert not caught.value.may_retry
        return caught.value.retry_after


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.mark.parametrize(
    ("outcomes", "phase"),
    [
        ("xxx", Phase.CLOSED),  # too few
        ("xxxx", Phase.OPEN),
        ("..xx", Phase.OPEN),
        ("...xx", Phase.CLOSED),
        ("...xxx", Phase.OPEN),
        ("xx..", Phase.CLOSED),  # it fails no longer
        ("xx..x", Phase.OPEN),
        ("xxx------", Phase.CLOSED),  # what is neither does not count as a call
    ],
)
def test_breaker_opens_when_enough_of_enough_calls_fail(subject: Subject, outcomes: str, phase: Phase) -> None:
    assert subject.calls(outcomes) is phase


def test_calls_count_for_as_long_as_the_window(subject: Subject) -> None:
    subject.calls("xxx")
    subject.time += 26.9
    assert subject.breaker.state == BreakerState(Phase.CLOSED, 3, 3, 0)
    subject.time += 3.1
    assert subject.breaker.state == BreakerState(Phase.CLOSED, 0, 0, 0)
    assert subject.calls("xxx") is Phase.CLOSED


def test_window_slides_by_tenths(subject: Subject) -> None:
    for _ in range(20):
        subject.call(".")
        subject.time += 3.0
    assert subject.breaker.state == BreakerState(Phase.CLOSED, 9, 0, 0)


def test_open_breaker_refuses_and_tells_when_it_will_not(subject: Subject) -> None:
    subject.calls("xxxx")
    assert subject.refusal() == 5.0
    subject.time += 3.5
    assert subject.refusal() == 1.5
    subject.time += 1.5
    assert subject.breaker.phase is Phase.HALF_OPEN
    subject.breaker.admit()


def test_half_open_breaker_admits_one_probe_alone_until_it_is_over(subject: Subject) -> None:
    subject.calls("xxxx")
    subject.time += 5.0
    probe = subject.breaker.admit()
    assert [subject.refusal() for _ in range(20)] == [5.0] * 20
    subject.breaker.succeed(probe)
    assert subject.breaker.state == BreakerState(Phase.CLOSED, 0, 0, 1)


def test_probe_that_is_given_up_leaves_its_place_to_another(subject: Subject) -> None:
    subject.calls("xxxx")
    subject.time += 5.0
    assert subject.calls("--") is Phase.HALF_OPEN
    assert subject.calls(".") is Phase.CLOSED


def test_each_probe_that_fails_opens_for_longer_up_to_the_cap(subject: Subject) -> None:
    subject.calls("xxxx")
    waits = []
    for _ in range(4):
        wait = subject.refusal()
        assert wait is not None
        waits.append(wait)
        subject.time += wait
        subject.call("x")
    assert waits == [5.0, 10.0, 12.0, 12.0]
    subject.time += 12.0
    subject.calls(".xxxx")
    assert subject.refusal() == 5.0


def test_calls_from_before_it_opened_decide_nothing_after(subject: Subject) -> None:
    early = [subject.breaker.admit() for _ in range(3)]
    subject.calls("xxxx")
    subject.breaker.succeed(early[0])
    assert subject.refusal() == 5.0
    subject.time += 5.0
    probe = subject.breaker.admit()
    subject.breaker.fail(early[1])
    subject.breaker.leave(early[2])
    assert subject.refusal() == 5.0
    subject.breaker.succeed(probe)
    assert subject.breaker.phase is Phase.CLOSED


def test_endless_outage_does_not_overflow_the_wait(subject: Subject) -> None:
    subject.calls("xxxx")
    for _ in range(2_000):
        subject.time += 12.0
        subject.call("x")
    assert subject.refusal() == 12.0


def test_log_tells_of_opening_and_closing_alone(subject: Subject) -> None:
    with capture_logs() as told:
        subject.calls("xxxx")
        subject.refusal()
        subject.time += 5.0
        subject.calls("....")
    assert [(entry["event"], entry["model"]) for entry in told] == [
        ("model suspended", "m"),
        ("model asked again", "m"),
    ]
