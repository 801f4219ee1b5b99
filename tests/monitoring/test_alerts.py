"""Each alert fires where it should, tells what it means to tell, and is silent where all is well."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.rules import RULES, alerts, program

# What all series have, as Prometheus adds it to what it scrapes.
WHERE = 'job="famulus",instance="a:9464"'
API = f'famulus_build_info{{{WHERE},role="api"}}'
WORKER = f'famulus_build_info{{{WHERE},role="worker"}}'
ENDED = 'famulus_runs_ended_total{%s,state="%s",model="m",variant="m",tier="default"}'
COMPLETED, FAILED, CANCELLED = (ENDED % (WHERE, state) for state in ("completed", "failed", "cancelled"))
CALLS = 'famulus_rpcs_total{%s,method="%s",code="%s"}'
CALLED = 'famulus_upstream_calls_total{%s,model="m",result="%s"}'


def buckets(name: str, labels: str, bound: str, later: str) -> dict[str, str]:
    """A histogram in which, each minute, all values are above one bound and within the next."""
    return {
        f'famulus_{name}_bucket{{{WHERE}{labels},le="{bound}"}}': "0x60",
        f'famulus_{name}_bucket{{{WHERE}{labels},le="{later}"}}': "0+60x60",
        f'famulus_{name}_bucket{{{WHERE}{labels},le="+Inf"}}': "0+60x60",
    }


@dataclass(frozen=True)
class Case:
    """Series by which an alert fires `at` some minute and not `before`, and series by which it never does."""

    alert: str
    description: str
    at: int
    before: int
    firing: Mapping[str, str]
    quiet: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=lambda: {"job": "famulus"})


INSTANCE = {"job": "famulus", "instance": "a:9464"}
MODEL = {"job": "famulus", "model": "m"}
CASES = (
    Case(
        "FamulusNoReplicaReady",
        "Of famulus no process that answers calls is ready.",
        at=8,
        before=5,
        firing={API: "1x60", f"famulus_ready{{{WHERE}}}": "1x5 0x60"},
        # One of two is enough.
        quiet={
            API: "1x60",
            API.replace("a:", "b:"): "1x60",
            f"famulus_ready{{{WHERE}}}": "0x60",
            f"famulus_ready{{{WHERE}}}".replace("a:", "b:"): "1x60",
        },
    ),
    Case(
        "FamulusNoWorkerReady",
        "Of famulus no process that executes runs is ready. New runs are taken and wait.",
        at=9,
        before=7,
        firing={WORKER: "1x60", f"famulus_ready{{{WHERE}}}": "1x5 0x60"},
        quiet={WORKER: "1x60", f"famulus_ready{{{WHERE}}}": "1x60"},
    ),
    Case(
        "FamulusRunsFail",
        "20% of the runs of famulus did not complete within the last hour.",
        at=60,
        before=1,
        firing={COMPLETED: "0+80x90", FAILED: "0+20x90"},
        # 2 of 100 fail, and what callers cancel is no failure.
        quiet={COMPLETED: "0+98x90", FAILED: "0+2x90", CANCELLED: "0+500x90"},
    ),
    Case(
        "FamulusRunsFail",
        "100% of the runs of famulus did not complete within the last hour.",
        at=60,
        before=1,
        firing={FAILED: "0+20x90"},
        # Too few to tell.
        quiet={FAILED: "0x9 1x9 2x9 3x9 4x9 5x9 6x9"},
    ),
    Case(
        "FamulusRunsFailSlowly",
        "10% of the runs of famulus did not complete within the last six hours.",
        at=60,
        before=14,
        firing={COMPLETED: "0+90x90", FAILED: "0+10x90"},
        quiet={COMPLETED: "0+95x90", FAILED: "0+5x90"},
    ),
    Case(
        "FamulusFirstWordLate",
        "5 of 100 runs of famulus wait longer than 29.5s for the first word.",
        at=15,
        before=9,
        firing=buckets("run_first_event_seconds", ',model="m",tier="default"', "20.0", "30.0"),
        quiet=buckets("run_first_event_seconds", ',model="m",tier="default"', "5.0", "10.0"),
    ),
    Case(
        "FamulusCallsFail",
        "10% of the calls to famulus end INTERNAL, UNKNOWN, UNAVAILABLE or DATA_LOSS.",
        at=8,
        before=5,
        firing={
            CALLS % (WHERE, "RunService/GetRun", "OK"): "0+90x60",
            CALLS % (WHERE, "RunService/GetRun", "INTERNAL"): "0+10x60",
            # Probes make it no better.
            CALLS % (WHERE, "Health/Check", "OK"): "0+9000x60",
        },
        quiet={
            CALLS % (WHERE, "RunService/GetRun", "OK"): "0+90x60",
            CALLS % (WHERE, "RunService/GetRun", "NOT_FOUND"): "0+90x60",
            CALLS % (WHERE, "RunService/CreateRun", "RESOURCE_EXHAUSTED"): "0+90x60",
            CALLS % (WHERE, "Health/Check", "UNAVAILABLE"): "0+90x60",
        },
    ),
    Case(
        "FamulusQueueWaits",
        "The next run of famulus waits since 1m 30s.",
        at=6,
        before=2,
        firing={f"famulus_queue_oldest_seconds{{{WHERE}}}": "90x60"},
        quiet={f"famulus_queue_oldest_seconds{{{WHERE}}}": "30x60"},
    ),
    Case(
        "FamulusSlotsExhausted",
        "No slot of famulus has been free for ten minutes.",
        at=12,
        before=9,
        firing={f"famulus_worker_free_slots{{{WHERE}}}": "0x60", f"famulus_worker_slots{{{WHERE}}}": "256x60"},
        # A process of the API has none.
        quiet={f"famulus_worker_free_slots{{{WHERE}}}": "0x60", f"famulus_worker_slots{{{WHERE}}}": "0x60"},
    ),
    Case(
        "FamulusTakeovers",
        "Within 15 minutes 15 runs of famulus were taken over from workers that were lost.",
        at=20,
        before=1,
        firing={f"famulus_run_takeovers_total{{{WHERE}}}": "0+1x60"},
        quiet={f"famulus_run_takeovers_total{{{WHERE}}}": "0x5 3x60"},
    ),
    Case(
        "FamulusModelSpared",
        "The breaker of m of famulus has not been closed for five minutes.",
        at=6,
        before=4,
        labels=MODEL,
        firing={f'famulus_breaker_open{{{WHERE},model="m"}}': "1 0.5 1 1 0.5 1 1 1"},
        quiet={f'famulus_breaker_open{{{WHERE},model="m"}}': "1 1 1 0 1 1 1 0 0 0 0 0 0"},
    ),
    Case(
        "FamulusModelFails",
        "50% of the calls of m of famulus fail.",
        at=15,
        before=9,
        labels=MODEL,
        firing={
            CALLED % (WHERE, "completed"): "0+30x60",
            CALLED % (WHERE, "unavailable"): "0+15x60",
            CALLED % (WHERE, "timeout"): "0+15x60",
        },
        quiet={
            CALLED % (WHERE, "completed"): "0+30x60",
            CALLED % (WHERE, "abandoned"): "0+90x60",
            CALLED % (WHERE, "suspended"): "0+90x60",
        },
    ),
    Case(
        "FamulusModelRateLimited",
        "10% of the calls of m of famulus are answered 429.",
        at=15,
        before=9,
        labels=MODEL,
        firing={CALLED % (WHERE, "completed"): "0+90x60", CALLED % (WHERE, "rate_limited"): "0+10x60"},
        quiet={CALLED % (WHERE, "completed"): "0+99x60", CALLED % (WHERE, "rate_limited"): "0+1x60"},
    ),
    Case(
        "FamulusStoreFails",
        "1 units of work per second of famulus fail, as the database is away or refuses.",
        at=6,
        before=1,
        firing={f'famulus_store_failures_total{{{WHERE},unit="write",reason="unavailable"}}': "0+60x60"},
        quiet={f'famulus_store_failures_total{{{WHERE},unit="write",reason="conflict"}}': "0+60x60"},
    ),
    Case(
        "FamulusStoreSlow",
        "One in 100 units of work (write) of famulus takes longer than 2.485s.",
        at=15,
        before=9,
        labels={"job": "famulus", "unit": "write"},
        firing=buckets("store_seconds", ',unit="write"', "1.0", "2.5"),
        quiet=buckets("store_seconds", ',unit="write"', "0.25", "0.5"),
    ),
    Case(
        "FamulusRedisAway",
        "a:9464 of famulus does not reach Redis, and keeps to its own part of all limits.",
        at=10,
        before=7,
        labels=INSTANCE,
        firing={f"famulus_redis_reachable{{{WHERE}}}": "1x3 0x60"},
        quiet={f"famulus_redis_reachable{{{WHERE}}}": "1 0 0 0 1 0 0 0 1x60"},
    ),
    Case(
        "FamulusEventsLost",
        "Within ten minutes 100 events of famulus were not written. "
        "Streams that resume get a Snapshot instead of them.",
        at=15,
        before=2,
        firing={f"famulus_event_log_lost_total{{{WHERE}}}": "0x9 100x60"},
        quiet={f"famulus_event_log_lost_total{{{WHERE}}}": "100x60"},
    ),
    Case(
        "FamulusTargetDown",
        "a:9464 of famulus does not answer Prometheus.",
        at=9,
        before=7,
        labels=INSTANCE,
        firing={f"up{{{WHERE}}}": "1x5 0x60"},
        quiet={f"up{{{WHERE}}}": "1x60", 'up{job="other",instance="a:9464"}': "0x60"},
    ),
)


def test_rules_are_what_prometheus_takes() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert not done.returncode, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    assert {case.alert for case in CASES} == set(alerts())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_alert_fires_when_it_should_and_says_so(case: Case, tmp_path: Path) -> None:
    rule = alerts()[case.alert]
    annotations = rule["annotations"] | {"description": case.description}
    expected = {"exp_labels": dict(case.labels) | rule["labels"], "exp_annotations": annotations}
    check(tmp_path, case.firing, {"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": [expected]})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_alert_waits_and_is_silent_where_all_is_well(case: Case, tmp_path: Path) -> None:
    check(tmp_path, case.firing, *silent(case, case.before))
    check(tmp_path, case.quiet, *(each for minute in range(0, 61, 5) for each in silent(case, minute)))


@pytest.mark.parametrize(
    ("alert", "other"), [("FamulusNoReplicaReady", WORKER), ("FamulusNoWorkerReady", API)], ids=["api", "worker"]
)
def test_alert_fires_when_no_such_process_is_left(alert: str, other: str, tmp_path: Path) -> None:
    rule = alerts()[alert]
    unlabelled = re.sub(r"\{\{.*\}\}", "", rule["annotations"]["description"])
    annotations = rule["annotations"] | {"description": unlabelled}
    expected = {"exp_labels": rule["labels"], "exp_annotations": annotations}
    series = {other: "1x60", f"famulus_ready{{{WHERE}}}": "1x60"}
    check(tmp_path, series, {"eval_time": "10m", "alertname": alert, "exp_alerts": [expected]})


def silent(case: Case, minute: int) -> list[dict[str, Any]]:
    return [{"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": []}]


def check(folder: Path, series: Mapping[str, str], *expected: Mapping[str, Any]) -> None:
    """Fails if the alerts of these series, one value a minute, are not as expected."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": list(expected),
    }
    path = folder / "test.yml"
    text = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    done = promtool("test", "rules", str(path))
    assert not done.returncode, done.stdout + done.stderr


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
