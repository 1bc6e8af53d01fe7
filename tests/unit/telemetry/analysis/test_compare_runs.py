"""Measures of runs, side by side."""

from __future__ import annotations

import pytest

from telemetry.analysis.compare_runs import (
    area_by_tokens,
    compare_runs,
    ideal_speed_up,
    run_measures,
    seconds_per_update,
)
from tests.fixtures.records import make_run_records


def test_measures_of_a_run() -> None:
    found = run_measures(make_run_records(10, 4, 6, 0.8))
    assert found["success"] == 0.8 and found["area"] == pytest.approx(0.5)
    assert found["successes_per_million"] == pytest.approx(1e6 * 12 / 3000)
    assert (
        found["pairs_per_thousand"] == pytest.approx(50 / 3)
        and found["repeated_pairs"] == 0.25
        and found["wasted"] == 0.1
    )
    assert found["successes_per_hour"] == pytest.approx(3600 * 4 / 10)


def test_an_updates_seconds_are_between_updates_without_an_evaluation() -> None:
    some = make_run_records(10, 4, 6, 0.8)
    late = [
        *some[:3],
        {"kind": "evaluation", "update": 2, "wall_seconds": 119.0, "success": 0.5},
        some[3] | {"wall_seconds": 500.0},
    ]
    assert seconds_per_update(some) == seconds_per_update(late) == 10
    assert seconds_per_update(some[:2]) is None and seconds_per_update([]) is None


def test_speed_up_is_over_the_synchronous_run_that_differs_in_nothing_else() -> None:
    runs = [
        ({"control": "off", "max_staleness": "0"}, make_run_records(10, 4, 6, 0.8)),
        ({"control": "off", "max_staleness": "1"}, make_run_records(6.5, 0.5, 6, 0.8)),
        ({"control": "t2po", "max_staleness": "1"}, make_run_records(5, 0, 5, 0.8)),
    ]
    first, second, third = compare_runs(runs)
    assert (first.speed_up, second.speed_up) == pytest.approx(
        (1.0, 10 / 6.5)
    ) and third.speed_up is None
    assert second.ideal == pytest.approx(10 / 6) and second.reached == pytest.approx(6 / 6.5)
    assert ideal_speed_up([]) is None


def test_the_ideal_leaves_out_what_waited_for_an_evaluation() -> None:
    some = make_run_records(10, 4, 6, 0.8)
    between = {
        "kind": "evaluation",
        "update": 2,
        "wall_seconds": 0.0,
        "success": 0.5,
        "episodes": 8,
    }
    assert ideal_speed_up([*some[:3], between, some[3] | {"seconds_wait": 400.0}]) == pytest.approx(
        10 / 6
    )


@pytest.mark.parametrize("name", ["seconds_wait", "seconds_train", "seconds_publish"])
def test_ideal_speed_up_leaves_out_updates_without_a_time(name: str) -> None:
    """A record may lack a number, or have null for one that was none."""
    records = make_run_records(10, 4, 6, 0.8)
    bare = {key: value for key, value in records[3].items() if key != name}
    for odd in (bare, records[3] | {name: None}):
        assert ideal_speed_up([*records[:3], odd]) == pytest.approx(10 / 6)
        assert ideal_speed_up([records[2], odd]) is None


def test_seeds_are_pooled_with_their_range_and_success_with_its_interval() -> None:
    (row,) = compare_runs(
        [
            ({"a": "1"}, make_run_records(10, 4, 6, 0.8, 40)),
            ({"a": "1"}, make_run_records(20, 4, 6, 0.6, 60)),
        ]
    )
    assert row.seeds == 2 and row.values["seconds_per_update"] == (15, 10, 20)
    mean, low, high = row.values["success"]
    assert (
        mean == pytest.approx(0.7)
        and low == pytest.approx(0.633, abs=1e-3)
        and high == pytest.approx(0.759, abs=1e-3)
    )  # of 200


def test_sample_efficiency_is_the_mean_height_of_the_curve() -> None:
    updates = [{"update": u, "training_tokens": 100 * u} for u in (1, 2, 3)]
    evaluations = [
        {"update": 0, "success": 0.2},
        {"update": 1, "success": 0.6},
        {"update": 3, "success": 0.6},
    ]
    assert area_by_tokens(updates, evaluations) == pytest.approx((0.4 * 100 + 0.6 * 200) / 300)
    assert area_by_tokens(updates, evaluations[:1]) is None
