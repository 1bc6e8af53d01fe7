"""`python -m telemetry.sinks.grafana > docs/grafana.json`: a Grafana dashboard of all that /metrics
says, a row a group, a panel a number."""

from __future__ import annotations

import json

from telemetry.metrics_schema import METRICS, TOTAL_SUFFIX
from telemetry.sinks.prometheus import family_of

UNITS = {"s": "s", "bytes": "bytes", "share": "percentunit"}
"""Unit of a field -> Grafana's; others are shown as they are."""
WIDE = 6
HIGH = 7
"""Of a panel, in Grafana's grid, which has 24 columns."""
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict:
    """The file, as `Dashboards > New > Import` takes it.

    Counts are shown as what came in a second.
    """
    panels: list[dict] = []
    y = 0
    for group in dict.fromkeys(field.group for field in METRICS.values()):
        panels.append(
            {
                "type": "row",
                "title": group,
                "id": len(panels) + 1,
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
                "panels": [],
            }
        )
        names = [name for name, field in METRICS.items() if field.group == group]
        for number, name in enumerate(names):
            place = {
                "x": WIDE * number % 24,
                "y": y + 1 + HIGH * (WIDE * number // 24),
                "w": WIDE,
                "h": HIGH,
            }
            panels.append(_panel(len(panels) + 1, name, place))
        y += 1 + HIGH * -(-WIDE * len(names) // 24)
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


def _panel(number: int, name: str, place: dict[str, int]) -> dict:
    field = METRICS[name]
    counts = field.aggregation == "total"
    family, _ = family_of("", f"{name}{TOTAL_SUFFIX}" if counts else name, live=False)
    expression = f"rate({family.name}_total[5m])" if counts else family.name
    return {
        "type": "timeseries",
        "id": number,
        "title": name.replace("_", " ") + " a second" * counts,
        "description": field.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": UNITS.get(field.unit, "short")}, "overrides": []},
        "targets": [
            {"expr": expression, "legendFormat": "{{instance}}", "refId": "A", "datasource": SOURCE}
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
