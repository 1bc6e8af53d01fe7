"""Numbers as Prometheus takes them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from telemetry.metrics_schema import METRICS
from telemetry.sinks.prometheus import exposition


def test_an_evaluation_has_its_own_counts_and_leaves_those_of_all_to_the_update() -> None:
    of_all = {"evaluation_tokens_total": 900.0, "generated_tokens_total": 5000.0}
    page = exposition({}, of_all, {"episodes": 128.0, "evaluation_tokens": 300.0, **of_all})
    values = {
        s.name: s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }
    assert values == {
        "foray_evaluation_episodes": 128,
        "foray_evaluation_tokens_total": 900,
        "foray_generated_tokens_total": 5000,
    }


def test_every_documented_number_has_a_name_that_prometheus_takes() -> None:
    page = exposition(
        {},
        {f"{name}_total" if f.aggregation == "total" else name: 1.0 for name, f in METRICS.items()},
        {},
    ).decode()
    assert len(list(text_string_to_metric_families(page))) == len(METRICS)
