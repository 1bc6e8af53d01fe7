"""Page of a sweep."""

from __future__ import annotations

import pytest

from telemetry.analysis.compare_runs import compare_runs, mean_curves
from telemetry.html.sweep_page import draw_learning, numeric_settings, render_sweep
from tests.fixtures.records import make_run_records


def test_draw_learning_has_a_line_for_each_combination_with_the_range_of_its_seeds() -> None:
    """Held-out success of several seeds is their mean, with bars from the lowest to the highest."""
    runs = [
        ({"control": control}, evaluated(shares))
        for control, shares in (("off", [0.2, 0.4]), ("off", [0.4, 0.8]), ("t2po", [0.5, 0.9]))
    ]
    curves = mean_curves(runs)
    assert curves["control off"] == [
        (0, pytest.approx(0.3), 0.2, 0.4),
        (1, pytest.approx(0.6), 0.4, 0.8),
    ]
    chart = draw_learning(runs)
    assert "control off</span>" in chart and chart.count('class="interval s0"') == 2
    assert draw_learning([({}, evaluated([0.5]))]) == "", "a point is no line"


def evaluated(shares: list[float]) -> list[dict]:
    """An evaluation after each update."""
    return [
        {"kind": "evaluation", "update": update, "wall_seconds": 1.0, "success": share}
        for update, share in enumerate(shares)
    ]


def test_a_page_has_a_row_for_each_and_a_chart_over_each_number() -> None:
    rows = compare_runs(
        [
            ({"max_staleness": s, "control": c}, make_run_records(10, 4, 6, 0.8))
            for s in "01"
            for c in ("off", "<b>t2po</b>")
        ]
    )
    html = render_sweep("<i>name</i>", rows, [])
    assert numeric_settings(rows) == ["max_staleness"] and html.count("<tr>") == 5
    assert (
        "<b>t2po" not in html
        and "<i>name" not in html
        and html.count('class="chart"') == len(rows[0].values)
    )
