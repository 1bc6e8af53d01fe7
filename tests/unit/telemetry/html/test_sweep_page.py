"""Page of a sweep."""

from __future__ import annotations

from telemetry.analysis.compare_runs import (
    compare_runs,
)
from telemetry.html.sweep_page import numeric_settings, render_sweep
from tests.fixtures.records import make_run_records


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
