"""Rates and quantiles of `top`: what lies between two scrapes."""

import pytest

from famulus_server.cli.monitor.change import Change, quantile
from famulus_server.telemetry.scrape import Scrape, Unreachable, read
from metered import Metered


def change(before: Metered | str, after: Metered | str, *, seconds: float = 2.0) -> Change:
    texts = [one if isinstance(one, str) else one.text() for one in (before, after)]
    return Change(read(texts[0], at=100.0), read(texts[1], at=100.0 + seconds))


def test_rate_is_what_was_counted_between_two_scrapes_per_second() -> None:
    replica = Metered()
    replica.count("stream_events", by=1_000)
    before = replica.text()
    replica.count("stream_events", by=30)
    assert change(before, replica).rate("famulus_stream_events_total") == 15.0


def test_rate_is_the_sum_over_the_labels_that_are_not_asked_for() -> None:
    replica = Metered()
    before = replica.text()
    replica.count("rpcs", "RunService/GetRun", "OK", by=4)
    replica.count("rpcs", "RunService/ListRuns", "OK", by=2)
    replica.count("rpcs", "RunService/GetRun", "INTERNAL", by=8)
    seen = change(before, replica)
    assert seen.rate("famulus_rpcs_total") == 7.0
    assert seen.rate("famulus_rpcs_total", code="OK") == 3.0
    assert seen.rises("famulus_rpcs_total", "code") == {"OK": 6.0, "INTERNAL": 8.0}


def test_counter_that_fell_has_begun_anew() -> None:
    before, after = Metered(), Metered()
    before.count("stream_events", by=1_000)
    after.count("stream_events", by=8)
    assert change(before, after).rate("famulus_stream_events_total") == 4.0


def test_all_counters_of_a_process_that_started_since_have_begun_anew() -> None:
    before, after = Metered(started_at=1.0), Metered(started_at=2.0)
    before.count("stream_events", by=5)
    # More than before, and yet all of it is new.
    after.count("stream_events", by=8)
    assert change(before, after).rate("famulus_stream_events_total") == 4.0


def test_quantiles_are_of_what_was_observed_meanwhile_on_all_replicas() -> None:
    one, other = Metered(), Metered()
    for _ in range(100):
        one.run_seconds.labels("completed").observe(9.0)
    before = one.text(), other.text()
    for _ in range(10):
        one.run_seconds.labels("completed").observe(0.05)
    for _ in range(10):
        other.run_seconds.labels("failed").observe(0.5)
    changes = [change(before[0], one), change(before[1], other)]
    # As histogram_quantile has it: half of them up to the first bound, the others evenly up to the second.
    assert quantile(0.5, "famulus_run_seconds", changes) == pytest.approx(0.1)
    assert quantile(0.75, "famulus_run_seconds", changes) == pytest.approx(0.55)
    assert quantile(1.0, "famulus_run_seconds", changes) == pytest.approx(1.0)


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    replica = Metered()
    before = replica.text()
    replica.run_seconds.labels("completed").observe(99.0)
    assert quantile(0.5, "famulus_run_seconds", [change(before, replica)]) == 10.0


def test_nothing_observed_has_no_quantile() -> None:
    replica = Metered()
    replica.run_seconds.labels("completed").observe(1.0)
    assert quantile(0.5, "famulus_run_seconds", [change(replica, replica)]) is None
    assert quantile(0.5, "famulus_run_seconds", []) is None


def test_what_is_no_metric_counts_as_0() -> None:
    empty = Scrape(0.0, {})
    assert empty.total("famulus_ready") == 0.0
    assert empty.label("famulus_build_info", "role") == ""


@pytest.mark.parametrize("text", ["<html>", 'famulus_ready{a="} 1\n', "famulus_ready one\n"])
def test_page_that_holds_no_metrics_is_told(text: str) -> None:
    with pytest.raises(Unreachable, match="no metrics"):
        read(text, at=0.0)
