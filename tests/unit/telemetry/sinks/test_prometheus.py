"""Numbers as Prometheus takes them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from telemetry.metrics_schema import METRICS
from telemetry.sinks.prometheus import exposition
from tests.fixtures.records import expose_all_metrics


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


def test_figures_of_sets_and_of_samples_have_labels_of_their_own() -> None:
    last = {"success": 0.5, "eval/seen/success": 0.75, "eval/seen/success/pick": 1.0}
    page = exposition({}, {}, {**last, "pass_at/4": 0.8, "eval/seen/pass_at/4": 0.9})
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    ]
    assert samples == [
        ("foray_evaluation_success_ratio", {}, 0.5),
        ("foray_evaluation_success_ratio_by_set", {"set": "seen"}, 0.75),
        ("foray_evaluation_success_ratio_by_set_by_kind", {"set": "seen", "kind": "pick"}, 1.0),
        ("foray_evaluation_pass_at_ratio_by_k", {"k": "4"}, 0.8),
        ("foray_evaluation_pass_at_ratio_by_set_by_k", {"set": "seen", "k": "4"}, 0.9),
    ]


def test_every_documented_number_has_a_name_that_prometheus_takes() -> None:
    page = expose_all_metrics().decode()
    assert len(list(text_string_to_metric_families(page))) == len(METRICS)
