"""Tables and figures of a sweep."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from supervisor.cli.sweep_tables import build_figures, effects_table
from telemetry.analysis.compare_runs import (
    compare_runs,
)
from telemetry.analysis.effects import compute_effects
from telemetry.html.sweep_page import render_sweep
from tests.fixtures.records import make_run_records


def test_what_a_setting_changes_is_in_the_table_the_page_and_the_figures() -> None:
    runs = [
        ({"a": a}, seed, make_run_records(10, 4, 6, 0.8, 50 + 10 * (a == "<2>")))
        for a in ("1", "<2>")
        for seed in range(6)
    ]
    rows = compare_runs([(settings, of_run) for settings, _, of_run in runs])
    found = compute_effects(runs)
    console = Console(width=170, record=True, file=io.StringIO())
    console.print(effects_table(found))
    said = console.export_text()
    assert (
        "a 1 → <2>" in said
        and "+20.0%" in said
        and "+20.0 to +20.0" in said
        and "6 up, 0 down" in said
    )
    html = render_sweep("name", rows, found)
    assert "a 1 → &lt;2&gt;" in html and "+20.0 %" in html and "6 ↑ 0 ↓" in html
    (written,) = json.loads(json.dumps(build_figures(rows, found)))["effects"]
    fifth = pytest.approx(0.2)
    assert written["pairs_per_thousand"] == {
        "median": fifth,
        "low": fifth,
        "high": fifth,
        "up": 6,
        "down": 0,
        "pairs": 6,
    }
