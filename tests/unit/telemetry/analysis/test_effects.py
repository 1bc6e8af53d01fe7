"""Effects of single settings, over runs that differ in nothing else."""

from __future__ import annotations

import pytest

from telemetry.analysis.effects import compute_effects
from tests.fixtures.records import make_run_records


def test_an_effect_is_of_runs_that_differ_in_one_setting_and_have_one_seed() -> None:
    runs = [
        ({"max_staleness": "0", "control": "off"}, 0, make_run_records(10, 4, 6, 0.8, pairs=50)),
        ({"max_staleness": "0", "control": "t2po"}, 0, make_run_records(10, 4, 6, 0.7, pairs=40)),
        ({"max_staleness": "4", "control": "off"}, 0, make_run_records(10, 4, 6, 0.85, pairs=60)),
        ({"max_staleness": "0", "control": "off"}, 1, make_run_records(10, 4, 6, 0.5, pairs=100)),
        ({"max_staleness": "4", "control": "off"}, 1, make_run_records(10, 4, 6, 0.4, pairs=110)),
        (
            {"max_staleness": "4", "control": "t2po"},
            1,
            make_run_records(10, 4, 6, 0.4, pairs=1),
        ),  # with its seed, no run has control alone
    ]
    older, controlled = compute_effects(runs)
    assert (older.setting, older.base, older.value) == ("max_staleness", "0", "4")
    pairs = older.changes["pairs_per_thousand"]  # relative: 60 / 50 and 110 / 100
    assert pairs.median == pytest.approx(0.15) and (
        pairs.low,
        pairs.high,
        pairs.up,
        pairs.down,
        pairs.pairs,
    ) == (None, None, 2, 0, 2)
    success = older.changes["success"]  # in points: 0.05 and -0.1
    assert success.median == pytest.approx(-0.025) and (success.up, success.down) == (1, 1)
    assert (controlled.setting, controlled.base, controlled.value) == ("control", "off", "t2po")
    assert (
        controlled.changes["pairs_per_thousand"].pairs == 2
    )  # of seed 0 and, at staleness 4, of seed 1


def test_settings_of_which_no_run_has_its_like_have_no_effects() -> None:
    assert (
        compute_effects([])
        == []
        == compute_effects(
            [
                ({"a": "1"}, 0, make_run_records(10, 4, 6, 0.8)),
                ({"a": "2"}, 1, make_run_records(10, 4, 6, 0.8)),
            ]
        )
    )
