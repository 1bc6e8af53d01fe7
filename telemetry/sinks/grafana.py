"""A Grafana dashboard of all that /metrics says: a row a group, a panel a number.

`python -m telemetry.sinks.grafana > docs/grafana.json`
"""

from __future__ import annotations

import json

from telemetry.metrics_schema import EVALUATION_METRICS, METRICS, TOTAL_SUFFIX
from telemetry.sinks.prometheus import EVALUATION_PREFIX, family_of

UNITS = {"s": "s", "bytes": "bytes", "share": "percentunit"}
"""Unit of a metric -> Grafana's; others are shown as they are."""
GRID_COLUMNS = 24
PANEL_WIDTH = 6
PANEL_HEIGHT = 7
PANELS_A_LINE = GRID_COLUMNS // PANEL_WIDTH
SOURCE = {"type": "prometheus", "uid": "${source}"}


def build_dashboard() -> dict:
    """The file, as `Dashboards > New > Import` takes it.

    Counts are shown as what came in a second.
    """
    panels: list[dict] = []
    y = 0
    for group in dict.fromkeys(metric.group for metric in METRICS.values()):
        panels.append(_build_row(len(panels) + 1, group, y))
        y += 1
        names = [name for name, metric in METRICS.items() if metric.group == group]
        for number, name in enumerate(names):
            line, column = divmod(number, PANELS_A_LINE)
            position = {"x": PANEL_WIDTH * column, "y": y + PANEL_HEIGHT * line}
            panels.append(_build_panel(len(panels) + 1, name, position))
        lines = -(-len(names) // PANELS_A_LINE)
        y += PANEL_HEIGHT * lines
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "foray",
        "uid": "foray",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _build_row(number: int, title: str, y: int) -> dict:
    return {
        "type": "row",
        "title": title,
        "id": number,
        "gridPos": {"x": 0, "y": y, "w": GRID_COLUMNS, "h": 1},
        "panels": [],
    }


def _family_name(name: str) -> str:
    """The name at Prometheus of a number of a record."""
    prefix = ""
    if name in EVALUATION_METRICS:
        prefix = EVALUATION_PREFIX
    found = family_of(prefix, name, live=False)
    if found is None:
        raise KeyError(f"{name} is no metric")
    family, _ = found
    return family.name


def _build_panel(number: int, name: str, position: dict[str, int]) -> dict:
    metric = METRICS[name]
    title = name.replace("_", " ")
    if metric.aggregation == "total":
        title += " a second"
        expression = f"rate({_family_name(name + TOTAL_SUFFIX)}_total[5m])"
    else:
        expression = _family_name(name)
    return {
        "type": "timeseries",
        "id": number,
        "title": title,
        "description": metric.description,
        "datasource": SOURCE,
        "gridPos": {**position, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": UNITS.get(metric.unit, "short")}, "overrides": []},
        "targets": [
            {"expr": expression, "legendFormat": "{{instance}}", "refId": "A", "datasource": SOURCE}
        ],
    }


if __name__ == "__main__":
    print(json.dumps(build_dashboard(), indent=1))
