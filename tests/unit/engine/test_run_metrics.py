from datetime import timedelta

from contract.samples import START, MovableClock
from contract.samples import run as new_run
from famulus.v1.run_pb2 import RatingVerdict, Run, RunErrorCode, RunRating, RunState, Usage
from famulus_server.engine.clock import timestamp
from famulus_server.engine.policy import Policies, Policy, Tier
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.ports import Claimed
from famulus_server.ports import metrics as catalogue
from famulus_server.telemetry.metrics import Measurements


class Counted:
    """What is counted of runs of a tenant `acme`, whose tier is `gold`."""

    def __init__(self) -> None:
        self.clock = MovableClock()
        self.metrics = Measurements()
        policies = Policies(Policy(tiers={"default": Tier(), "gold": Tier()}, tenants={"acme": "gold"}))
        self.runs = RunMetrics(metrics=self.metrics, policies=policies, clock=self.clock)

    def all(self, counter: catalogue.Counter) -> dict[tuple[str, ...], float]:
        return dict(self.metrics.snapshot().values[counter])

    def sums(self, histogram: catalogue.Histogram) -> dict[tuple[str, ...], float]:
        return {labels: spread.total for labels, spread in self.metrics.snapshot().spreads[histogram].items()}


def started(attempt: int, turn_attempt: int, *, seconds: float = 0.0, taken_over: bool = False) -> Claimed:
    run = new_run()
    run.model, run.attempt, run.turn_attempt = "m", attempt, turn_attempt
    run.start_time.CopyFrom(timestamp(START + timedelta(seconds=seconds)))
    return Claimed("acme", run, taken_over)


def test_only_the_first_claim_of_a_run_ends_its_waiting() -> None:
    counted = Counted()
    counted.runs.started(started(1, 1, seconds=2.5))
    counted.runs.started(started(2, 1, seconds=2.5))
    assert counted.sums(catalogue.RUN_QUEUE_SECONDS) == {("gold",): 2.5}


def test_run_that_its_worker_gave_back_is_not_taken_over_from_a_lost_one() -> None:
    counted = Counted()
    counted.runs.started(started(2, 1, taken_over=True))
    assert counted.all(catalogue.RUN_TAKEOVERS) == {(): 0}
    counted.runs.started(started(2, 2, taken_over=True))
    assert counted.all(catalogue.RUN_TAKEOVERS) == {(): 1}
    assert counted.sums(catalogue.RUN_QUEUE_SECONDS) == {}


def test_only_the_first_word_of_a_run_counts() -> None:
    counted = Counted()
    counted.clock.advance(1.5)
    run = started(1, 1).run
    counted.runs.spoke("acme", run)
    run.turn_attempt = 2
    counted.runs.spoke("acme", run)
    run.turn_attempt, run.turns = 1, 1
    counted.runs.spoke("acme", run)
    assert counted.sums(catalogue.RUN_FIRST_EVENT_SECONDS) == {("m", "gold"): 1.5}


def test_clock_that_goes_back_makes_no_negative_times() -> None:
    counted = Counted()
    counted.clock.advance(-5)
    counted.runs.spoke("acme", started(1, 1).run)
    counted.runs.started(started(1, 1, seconds=-5))
    assert counted.sums(catalogue.RUN_FIRST_EVENT_SECONDS) == {("m", "gold"): 0}
    assert counted.sums(catalogue.RUN_QUEUE_SECONDS) == {("gold",): 0}


def test_usage_counts_for_the_model_that_answered_and_nothing_for_none() -> None:
    counted = Counted()
    run = Run(model="route", variant="m")
    counted.runs.used("acme", run, Usage(prompt_tokens=3, completion_tokens=2, cost_nanos=5))
    counted.runs.used("acme", run, Usage(prompt_tokens=1))
    counted.runs.used("acme", run, None)
    counted.runs.used("nobody", Run(model="route"), Usage())
    assert counted.all(catalogue.TOKENS) == {("prompt", "m", "gold"): 4, ("completion", "m", "gold"): 2}
    assert counted.all(catalogue.COST) == {("m", "gold"): 5e-9}


def test_end_tells_state_time_error_and_whether_it_was_degraded() -> None:
    counted = Counted()
    run = started(1, 1).run
    run.state, run.degraded = RunState.RUN_STATE_FAILED, True
    run.error.code = RunErrorCode.RUN_ERROR_CODE_WORKER_LOST
    run.end_time.CopyFrom(timestamp(START + timedelta(seconds=9)))
    counted.runs.ended("nobody", run)
    assert counted.all(catalogue.RUNS_ENDED) == {("failed", "m", "", "default"): 1}
    assert counted.sums(catalogue.RUN_SECONDS) == {("failed", "m", "", "default"): 9}
    assert counted.all(catalogue.RUN_ERRORS) == {("worker_lost", "m"): 1}
    assert counted.all(catalogue.RUNS_DEGRADED) == {("m",): 1}


def test_ratings_are_told_in_words() -> None:
    counted = Counted()
    for verdict in (RatingVerdict.RATING_VERDICT_GOOD, RatingVerdict.RATING_VERDICT_BAD):
        counted.runs.rated(RunRating(verdict=verdict))
    assert counted.all(catalogue.RUN_RATINGS) == {("good",): 1, ("bad",): 1}
