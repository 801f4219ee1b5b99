"""Alerts, runbooks and dashboard fit each other, and the metrics that there are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from famulus_server.ports.metrics import CATALOGUE, Histogram
from monitoring.__main__ import CHARTS
from monitoring.dashboard import DASHBOARD, dashboard, panels, queries
from monitoring.rules import MONITORING, ROOT, RULES, alerts, groups, records

RUNBOOKS = ROOT / "docs/runbooks.md"
PAGE = ROOT / "docs/monitoring.md"
# What else is there of each target: of the Prometheus client in the process, and of Prometheus itself.
FOREIGN = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"} | {
    "process_open_fds",
    "process_max_fds",
}
PARTS = ("callers", "look", "do", "escalate")


def sections() -> dict[str, str]:
    """The text of each section, by its title."""
    found = re.split(r"^## (.*)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def expressions() -> list[str]:
    """All that rules and panels ask."""
    rules = [rule["expr"] for group in groups() for rule in group["rules"]]
    return rules + [query.expression for query in queries()]


def served() -> set[str]:
    """The names of all series that a process has."""
    names = {f"famulus_{metric.name}" for metric in CATALOGUE if not isinstance(metric, Histogram)}
    histograms = [f"famulus_{metric.name}" for metric in CATALOGUE if isinstance(metric, Histogram)]
    return names | {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_count", "_sum")}


def used() -> set[str]:
    """The names of the series in these expressions; a name that is recorded has a colon."""
    names = r"(?<![\w:\"])(?:famulus|process|job:famulus)_[\w:]+|\bup\b"
    return {name for expression in expressions() for name in re.findall(names, expression)}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert sections().keys() == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_alert_says_how_bad_it_is_and_where_to_read_on(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
    assert alert["annotations"]["summary"].endswith(".")
    section = sections()[name]
    # One heading says causes, some say what to do beside them.
    assert [part for part in PARTS if f"**{part}" not in section.lower() and f" {part}**" not in section.lower()] == []


def test_rules_and_panels_ask_for_series_that_exist() -> None:
    assert used() - served() - FOREIGN - records().keys() == set()


def test_rules_that_record_are_used() -> None:
    assert records().keys() <= used()


def test_dashboard_shows_all_that_is_measured() -> None:
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used()}
    assert {f"famulus_{metric.name}" for metric in CATALOGUE} - shown == set()


def test_panels_have_units_and_descriptions_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"].endswith((".", "md."))
        assert panel["fieldConfig"]["defaults"]["unit"]
    ids = [panel["id"] for panel in dashboard()["panels"]]
    titles = [panel["title"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


def test_files_are_what_their_sources_make(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / ".ci/dashboard.py"), str(tmp_path)], check=True)
    for name in (DASHBOARD.name, "prometheus-rule.yaml"):
        made = (tmp_path / name).read_text(encoding="utf-8")
        assert made == (MONITORING / name).read_text(encoding="utf-8"), f"python .ci/dashboard.py {MONITORING}"


def test_operator_gets_the_same_rules() -> None:
    text = (MONITORING / "prometheus-rule.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))


def test_page_shows_all_charts() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(charts/([\w-]+)\.svg\)", PAGE.read_text(encoding="utf-8"))
    assert shown == list(CHARTS)
    drawn = {path.stem for path in (ROOT / "docs/charts").glob("*.svg")}
    assert drawn == set(CHARTS)
