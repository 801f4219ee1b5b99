"""Writes the dashboard for Grafana, and the rules as an object of the Prometheus operator, into a folder.

Both lie in `k8s/components/monitoring/`, made by `python .ci/dashboard.py k8s/components/monitoring`: the one from
`panels.py`, as Grafana's JSON says everything for each panel again, the other from `famulus.rules.yml`.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from panel import Panel
from panels import ROWS

RULES = Path(__file__).parent.parent / "k8s/components/monitoring/famulus.rules.yml"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8


def main(folder: Path) -> None:
    """Writes both files."""
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False)
    (folder / "famulus.dashboard.json").write_text(text + "\n", encoding="utf-8")
    (folder / "prometheus-rule.yaml").write_text(prometheus_rule(RULES.read_text(encoding="utf-8")), encoding="utf-8")


def prometheus_rule(rules: str) -> str:
    """The same rules, word for word, as the operator takes them."""
    groups = rules[rules.index("groups:") :]
    head = (
        "# Made from famulus.rules.yml by .ci/dashboard.py: change it there.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: famulus\nspec:\n"
    )
    return head + "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


def dashboard() -> dict[str, Any]:
    """Grafana's model of it."""
    return {
        "uid": "famulus",
        "title": "famulus",
        "description": "Runs, workers, models and stores of famulus. docs/monitoring.md says more.",
        "tags": ["famulus"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": variables()},
        "annotations": {"list": [firing()]},
        "panels": list(panels()),
    }


def variables() -> list[dict[str, Any]]:
    known = "famulus_build_info"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        variable("namespace", f"label_values({known}, namespace)"),
        variable("job", f'label_values({known}{{namespace=~"$namespace"}}, job)'),
        variable("instance", f'label_values({known}{{namespace=~"$namespace",job=~"$job"}}, instance)'),
        variable(
            "model",
            'label_values({__name__=~"famulus_runs_created_total|famulus_breaker_open",'
            'namespace=~"$namespace",job=~"$job"}, model)',
        ),
    ]


def variable(name: str, query: str) -> dict[str, Any]:
    # Matches what has no such label at all, as namespaces outside Kubernetes.
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def firing() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Famulus.*",alertstate="firing",namespace=~"$namespace",job=~"$job"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model}} {{instance}}",
        "step": "60s",
    }


def panels() -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    top = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        yield {"id": next(ids), "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        left = 0
        for panel in row:
            height = HEIGHT // 2 if panel.number and panel.width < HEIGHT else HEIGHT
            if left + panel.width > WIDTH:
                left, top = 0, top + height
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            left += panel.width
            yield {"id": next(ids), "gridPos": place, **drawn(panel)}
        top += height


def drawn(panel: Panel) -> dict[str, Any]:
    bounds = {"min": 0.0} if panel.most is None else {"min": 0.0, "max": panel.most}
    custom = {
        "drawStyle": "line",
        "fillOpacity": 30 if panel.stacked else 5,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    color = {"mode": "thresholds"} if panel.number else {"mode": "palette-classic-by-name"}
    shown = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    return {
        "type": "stat" if panel.number else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": color,
                "custom": {} if panel.number else custom,
                "thresholds": {"mode": "absolute", "steps": [{"color": "text", "value": None}]},
                **bounds,
            },
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "graphMode": "area",
            "colorMode": "value",
            "textMode": "auto",
        }
        if panel.number
        else {"legend": shown, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "range": True,
            }
            for place, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
