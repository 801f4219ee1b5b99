"""The benchmark measures what it says, in its smallest form; what it finds here means nothing."""

import json
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import measure
from bench.plan import TINY
from bench.report import limiting
from bench.results import Chart, Profile, Results
from bench.targets import TARGETS, Target

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"


async def test_streams_starts_and_calls_are_measured_beside_the_bare_prototype() -> None:
    results = await measure(["W1", "W2", "W3", "W5"], TINY, None)
    for key in ("w1_vs_bare", "w2_ttfe_ms", "w2_cpu_ms_per_run", "w3_p99_delay_ms", "w5_vs_bare"):
        assert results.figures[key] > 0, key
    assert [chart.name for chart in results.charts] == ["w1", "w2", "w3", "w5"]
    assert results.cores["W1 famulus"].keys() == {"client", "server", "Valkey", "upstream", "others"}
    # Nobody should believe that it was compared.
    assert "w1_vs_litellm" not in results.figures
    assert "LiteLLM was NOT measured" in results.skipped[0]


async def test_idle_watches_are_counted_on_a_server_of_their_own() -> None:
    results = await measure(["W4"], TINY, None)
    assert results.figures["w4_watches"] == TINY.watches[-1]
    assert results.figures["w4_unary_calls"] > 1


def test_line_of_json_has_each_figure_with_a_target_measured_or_not() -> None:
    said = json.loads(report.line(Results(figures={"w1_events_per_s": 1.23456, "more": 2.0})))
    assert said.keys() == {target.key for target in TARGETS} | {"more"}
    assert (said["w1_events_per_s"], said["w8_start_s"]) == (1.235, None)


def test_page_keeps_what_people_wrote_around_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE.read_text() + "\nAnd what it means.\n")
    chart = Chart(
        name="w1",
        title="a < b",
        x="runs",
        y="deltas",
        steps=["1", "2"],
        lines={"famulus": [1.0, 900.0], "bare": [None, 5.0]},
    )
    results = Results(
        figures={"w5_vs_bare": 0.4},
        charts=[chart],
        cores={"W5": {"client": 0.1, "server": 0.97, "others": 0.5}},
        profiles=[Profile(title="W5", functions=[("answer (calls.py)", 0.25)])],
    )
    for _ in range(2):
        report.write(results, {"machine": "a small one"}, "make bench", 2, page)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert text.endswith("And what it means.\n")
    assert text.count("- machine: a small one\n") == 1
    assert "| 0.40 | at least 0.5 | NOT reached |" in text
    assert "| W5 | 0.10 | 0.97 | 0.50 | the server |" in text
    assert "**The machine was NOT quiet: others used up to 0.5 cores, in 1 situations**" in text
    assert "| `answer (calls.py)` | 25.0% |" in text
    assert "a &lt; b" in (tmp_path / "benchmarks/w1.svg").read_text()


@pytest.mark.parametrize(
    ("found", "cores", "verdict"),
    [({}, 2, "NOT measured"), ({"k": 1.7}, 2, "reached"), ({"k": 1.0}, 8, "NOT reached")],
)
def test_verdict_says_whether_a_figure_was_reached(found: dict[str, float], cores: int, verdict: str) -> None:
    assert Target("k", "", "at least", 1.7, cores=4).verdict(found, cores) == verdict


def test_verdict_says_where_the_machine_is_too_small() -> None:
    assert Target("k", "", "at least", 1.7, cores=4).verdict({"k": 1.0}, 2) == "NOT reached; needs 4 cores, here are 2"


@pytest.mark.parametrize(
    ("used", "who"),
    [
        ({"client": 0.2, "server": 0.99, "others": 1.0}, "the server"),
        ({"client": 0.2, "server": 0.7, "others": 1.1}, "the machine"),
        ({"client": 0.2, "server": 0.7, "others": 0.1}, "nobody: waiting"),
    ],
)
def test_who_limits_is_the_busy_process_or_the_whole_machine(used: dict[str, float], who: str) -> None:
    assert limiting(used, 2) == who
