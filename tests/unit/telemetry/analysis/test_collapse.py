"""Signs of a collapse, in runs made by hand."""

from __future__ import annotations

import io
from math import nan

import pytest
from rich.console import Console

from config import RunSection
from protocol.messages import Stats
from telemetry.analysis.collapse import collapse_signs, has_collapsed, last_update_before_signs
from telemetry.progress import Progress
from telemetry.state import RunState
from telemetry.summary import format_summary, summarize_run
from tests.fixtures.records import evaluated


def run(**columns: list[float]) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


HEALTHY = run(
    reward=[1, 2, 3, 4, 5, 5, 6, 5, 6, 5, 6, 6],
    entropy=[1, 1, 1, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5],
    grad_norm=[1] * 12,
    effective_sample_size=[0.9] * 12,
    ratio_p99=[1.5] * 12,
)


def spoilt(**last: list[float]) -> list[dict]:
    """A healthy run whose last updates have these values."""
    updates = [dict(record) for record in HEALTHY]
    for name, values in last.items():
        for record, value in zip(updates[-len(values) :], values, strict=True):
            record[name] = value
    return updates


def test_a_healthy_run_shows_none():
    assert all(collapse_signs(HEALTHY[:n], 0.3) == {} for n in range(len(HEALTHY) + 1))


@pytest.mark.parametrize(
    ("sign", "last", "said"),
    [
        ("reward drop", {"reward": [2, 2, 2, 2, 2]}, "last 5 updates 2, at best it was 4.6"),
        (
            "entropy collapse",
            {"entropy": [0.1, 0.1, 0.1, 0.1, 0.1]},
            "0.1 nats, at first it was 0.94",
        ),
        ("gradient spike", {"grad_norm": [11.0]}, "gradient norm 11, usually 1"),
        ("few samples", {"effective_sample_size": [0.2]}, "0.20 of 1"),
        ("ratio tail", {"ratio_p99": [7.5]}, "7.5"),
        ("no gradient", {"skipped_steps": [4], "optimizer_steps": [0]}, "all 4 optimizer steps"),
    ],
)
def test_a_sign_is_named_with_its_numbers(sign: str, last: dict[str, list[float]], said: str):
    (found,) = collapse_signs(spoilt(**last), 0.3).items()
    assert found[0] == sign and said in found[1]


def test_an_update_without_an_entropy_does_not_hide_that_it_collapses():
    updates = spoilt(entropy=[0.1, 0.1, 0.1, 0.1, 0.1])
    updates[0]["entropy"] = nan
    assert list(collapse_signs(updates, 0.3)) == ["entropy collapse"]


def test_a_step_that_was_left_out_among_others_is_no_sign():
    assert (
        collapse_signs(spoilt(skipped_steps=[1], optimizer_steps=[3], grad_norm=[nan]), 0.3) == {}
    )


def test_how_few_samples_are_too_few_is_a_setting():
    update = {"effective_sample_size": 0.5}
    assert collapse_signs([update], 0.5) == {} and list(collapse_signs([update], 0.51)) == [
        "few samples"
    ]


def test_values_that_are_missing_are_no_signs():
    assert collapse_signs([{"reward": None, "entropy": None} for _ in range(20)], 0.3) == {}


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([0.4, 0.9, 0.8], False),
        ([0.4, 0.9, 0.44], True),
        ([0.4, 0.9, 0.45], False),
        ([0.0, 0.0], None),
        ([0.5], None),
    ],
)
def test_a_run_has_collapsed_below_half_of_its_best_evaluation(
    shares: list[float], verdict: bool | None
):
    assert has_collapsed([{"success": share} for share in shares]) is verdict


@pytest.mark.parametrize(
    ("evaluations", "verdict"),
    [
        ([(0.0625, 16), (0.0, 16)], False),
        ([(0.9, 128), (0.3, 128)], True),
        ([(0.5, 8), (0.0, 4)], False),
    ],
)
def test_has_collapsed_only_beyond_what_chance_gives(
    evaluations: list[tuple[float, int]], verdict: bool
):
    """One game of sixteen that is lost again is no collapse."""
    records = [evaluated(share, games) for share, games in evaluations]
    assert has_collapsed(records) is verdict


def test_a_sign_is_told_once_and_stays_in_the_summary():
    state = RunState(0.0)
    file = io.StringIO()
    progress = Progress(state, RunSection(), Console(file=file), clock=lambda: 1.0)
    for number, record in enumerate([*spoilt(ratio_p99=[7.5, 9.0]), HEALTHY[0]], 1):
        state.observe(
            Stats(
                source="learner",
                event="update",
                values=record | {"update": number, "success": 0.5, "episodes": 8},
            ),
            1.0,
        )
        progress.tick()
    assert file.getvalue().count("warning: ratio tail: 99th percentile of pi/mu 7.5") == 1
    summary = summarize_run(state, 2.0)
    assert (
        summary["signs"] == {"ratio tail": "99th percentile of pi/mu 7.5"}
        and summary["collapsed"] is None
    )
    assert "ratio tail" in format_summary(summary, RunSection())


@pytest.mark.parametrize(
    ("update", "checkpoints", "good"),
    [(20, [0, 10, 15, 16, 20], 15), (20, [16, 18], 16), (3, [0, 2], 0), (9, [], None)],
)
def test_what_signs_do_not_speak_of_is_older_than_their_window_or_the_first_there_is(
    update: int, checkpoints: list[int], good: int | None
):
    assert last_update_before_signs(update, checkpoints) == good


def test_a_rollback_is_told_once_and_counted_in_the_summary():
    state = RunState(0.0)
    file = io.StringIO()
    progress = Progress(state, RunSection(), Console(file=file), clock=lambda: 1.0)
    for number, more in enumerate([{}, {"rolled_back_to": 0}, {}], 1):
        state.observe(
            Stats(
                source="learner",
                event="update",
                values=HEALTHY[0] | {"update": number, "success": 0.5, "episodes": 8} | more,
            ),
            1.0,
        )
        progress.tick()
    assert (
        file.getvalue().count("after update 2 training went back to the weights of update 0") == 1
    )
    summary = summarize_run(state, 2.0)
    assert summary["rollbacks"] == 1 and "rollbacks" in format_summary(summary, RunSection())
