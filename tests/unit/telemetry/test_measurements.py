from famulus_server.ports.metrics import BREAKER_OPEN, CATALOGUE, RPC_SECONDS, RPCS, STORE_FAILURES, STREAM_EVENTS
from famulus_server.telemetry.metrics import Measurements


def test_what_is_added_is_summed_up_by_its_labels() -> None:
    metrics = Measurements()
    metrics.add(RPCS, "a", "OK")
    metrics.add(RPCS, "a", "OK", amount=2.5)
    metrics.add(RPCS, "b", "OK")
    assert metrics.snapshot().values[RPCS] == {("a", "OK"): 3.5, ("b", "OK"): 1.0}


def test_metric_without_labels_is_zero_from_the_start() -> None:
    assert Measurements().snapshot().values[STREAM_EVENTS] == {(): 0.0}
    assert Measurements().snapshot().values[RPCS] == {}


def test_value_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    metrics = Measurements()
    values = (0.0, RPC_SECONDS.buckets[0], RPC_SECONDS.buckets[0] + 1e-9, RPC_SECONDS.buckets[-1] + 1)
    for value in values:
        metrics.observe(RPC_SECONDS, value, "a")
    spread = metrics.snapshot().spreads[RPC_SECONDS]["a",]
    assert (spread.counts[0], spread.counts[1], spread.counts[-1], sum(spread.counts)) == (2, 1, 1, 4)
    assert spread.total == sum(values)


def test_what_is_counted_elsewhere_is_read_when_somebody_looks() -> None:
    metrics = Measurements()
    phases: dict[tuple[str, ...], float] = {("m",): 0.0}
    metrics.show(BREAKER_OPEN, lambda: phases)
    phases["m",] = 1.0
    assert metrics.snapshot().values[BREAKER_OPEN] == {("m",): 1.0}
    phases.clear()
    assert metrics.snapshot().values[BREAKER_OPEN] == {}


def test_metric_may_be_both_counted_and_read() -> None:
    metrics = Measurements()
    metrics.add(STORE_FAILURES, "read", "unavailable")
    metrics.show(STORE_FAILURES, lambda: {("write", "conflict"): 7.0})
    assert metrics.snapshot().values[STORE_FAILURES] == {("read", "unavailable"): 1.0, ("write", "conflict"): 7.0}


def test_beyond_its_bounds_a_metric_counts_others_together() -> None:
    metrics = Measurements(most_children=2)
    for label in ("a", "b", "c", "d", "a"):
        metrics.add(RPCS, label, "OK")
        metrics.observe(RPC_SECONDS, 1.0, label)
    found = metrics.snapshot()
    assert found.values[RPCS] == {("a", "OK"): 2.0, ("b", "OK"): 1.0, ("other", "other"): 2.0}
    assert {labels: sum(one.counts) for labels, one in found.spreads[RPC_SECONDS].items()} == {
        ("a",): 2,
        ("b",): 1,
        ("other",): 2,
    }


def test_snapshot_stays_as_it_was() -> None:
    metrics = Measurements()
    metrics.add(RPCS, "a", "OK")
    metrics.observe(RPC_SECONDS, 1.0, "a")
    before = metrics.snapshot()
    metrics.add(RPCS, "a", "OK")
    metrics.observe(RPC_SECONDS, 1.0, "a")
    assert before.values[RPCS] == {("a", "OK"): 1.0}
    assert sum(before.spreads[RPC_SECONDS]["a",].counts) == 1


def test_no_label_of_the_catalogue_names_what_is_unbounded() -> None:
    """A new one needs a look at who chooses its values."""
    assert {label for metric in CATALOGUE for label in metric.labels} == {
        *("method", "code", "model", "variant", "tier", "state", "rating", "kind", "problem", "result", "scope"),
        *("quantity", "decision", "unit", "reason", "version", "role", "currency"),
    }
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
