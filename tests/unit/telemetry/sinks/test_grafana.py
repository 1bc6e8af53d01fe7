"""The dashboard for Grafana asks for numbers that there are."""

from __future__ import annotations

import json
import re

from prometheus_client.parser import text_string_to_metric_families

from telemetry.metrics_schema import METRICS
from telemetry.sinks.grafana import build_dashboard
from tests.fixtures import ROOT
from tests.fixtures.records import expose_all_metrics


def test_grafana_asks_for_numbers_that_prometheus_gets() -> None:
    page = expose_all_metrics().decode()
    known = {
        sample.name for family in text_string_to_metric_families(page) for sample in family.samples
    }
    panels = [panel for panel in build_dashboard()["panels"] if panel["type"] != "row"]
    asked = {re.sub(r"rate\((.*)\[5m\]\)", r"\1", panel["targets"][0]["expr"]) for panel in panels}
    assert asked == {name for name in known if not name.endswith("_created")} and len(
        panels
    ) == len(METRICS)


def test_the_file_for_grafana_is_that_of_now() -> None:
    file = ROOT / "docs" / "grafana.json"
    assert json.loads(file.read_text()) == build_dashboard(), (
        "python -m telemetry.sinks.grafana > docs/grafana.json"
    )
