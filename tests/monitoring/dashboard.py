"""The dashboard that ships, with its variables put in."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from monitoring.rules import MONITORING

DASHBOARD = MONITORING / "famulus.dashboard.json"


@dataclass(frozen=True)
class Query:
    """One expression of a panel, and what the legend says of its series."""

    panel: str
    expression: str
    legend: str

    def asked(self, *, interval: str, span: str) -> str:
        """What Grafana sends where nothing is chosen: durations for `$__rate_interval` and `$__range`."""
        variables = {"__rate_interval": interval, "__range": span}
        return re.sub(r"\$(\w+)", lambda found: variables.get(found[1], ".*"), self.expression)

    def label(self, metric: Mapping[str, str]) -> str:
        """What the legend says of this series."""
        return re.sub(r"{{(\w+)}}", lambda found: metric.get(found[1], ""), self.legend).strip()


@cache
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """All but the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Those of all panels."""
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]
