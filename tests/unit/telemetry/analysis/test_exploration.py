"""Measures of exploration: known answers, bounds, and parts that add up to the whole."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.arrays import FLOAT16, UINT8, pack
from protocol.messages import ControlEvent, EpisodeKey, Response, Trajectory, Turn
from telemetry.analysis.exploration import (
    FLAT,
    GAMMA_BINS,
    Exploration,
    compute_measures,
    count_by_age,
    equal_returns,
    flat_tail,
    merge_counts,
    quantile,
    turn_gammas,
)
from telemetry.metrics_schema import undocumented_names
from tests.fixtures.messages import make_response, make_trajectory, make_turn


def attempt(
    length: int = 10, version: int = 0, *, uncertainty=(), forced: int = 0, **fields
) -> Response:
    mask = [0] * forced + [1] * (length - forced)
    return make_response(
        length, version, mask=pack(mask, UINT8), uncertainty=pack(uncertainty, FLOAT16), **fields
    )


def turn(anchor: str, action: str, kept: Response | None = None, **fields) -> Turn:
    return make_turn(kept or attempt(), anchor=anchor, action=action, **fields)


def episode(*turns: Turn, member: int = 0, task: int = 0, success: bool = False) -> Trajectory:
    return make_trajectory(
        EpisodeKey(0, member), task_index=task, success=success, turns=list(turns)
    )


def of(*episodes: Trajectory, version: int = 0) -> dict[str, float]:
    """Measures of one group."""
    return compute_measures(merge_counts(count_by_age([episodes], version).values()))


def test_states_and_pairs_are_counted_once_for_the_tokens_generated() -> None:
    found = of(
        episode(turn("a", "x"), turn("b", "x", rejected=[attempt(20)]), turn("a", "y")),
        episode(turn("a", "x"), turn("c", "x"), member=1),
    )
    assert found["coverage_states"] == pytest.approx(
        1000 * 3 / 70
    )  # a, b, c in 50 kept and 20 rejected tokens
    assert found["coverage_pairs"] == pytest.approx(1000 * 4 / 70)  # ax, bx, ay, cx
    assert found["rejected_share"] == pytest.approx(20 / 70)


def test_the_same_text_in_another_task_is_another_state() -> None:
    assert of(episode(turn("a", "x")), episode(turn("a", "x"), task=1))[
        "coverage_states"
    ] == pytest.approx(1000 * 2 / 20)


def test_repetition_is_within_an_episode() -> None:
    found = of(
        episode(turn("a", "x"), turn("b", "x"), turn("a", "x"), turn("a", "y"), turn("b", "z")),
        episode(turn("a", "x"), member=1),
    )
    assert found["repeated_states"] == pytest.approx(3 / 4) and found[
        "repeated_pairs"
    ] == pytest.approx(1 / 4)


def test_a_group_is_as_diverse_as_its_first_actions_and_its_paths() -> None:
    paths = [("x", "y"), ("x", "y"), ("x", "z"), ("w", "y")]
    members = [
        [turn("a", action, reward=1.0 * (number == 3)) for action in path]
        for number, path in enumerate(paths)
    ]
    found = of(*(episode(*turns, member=number) for number, turns in enumerate(members)))
    assert (found["first_actions"], found["distinct_paths"], found["informative_share"]) == (
        2 / 4,
        3 / 4,
        1.0,
    )


def test_gamma_is_the_change_from_the_kept_turn_before() -> None:
    turns = [turn("a", "x", attempt(score=score)) for score in (0.2, 0.5, nan, 0.4, 0.4)]
    assert list(turn_gammas(turns)) == pytest.approx([None, 0.3, None, None, 0.0])
    stalled = ControlEvent(kind="keep", reason="stalled", position=9, value=0.0, threshold=0.1)
    turns[-1] = turn("a", "x", attempt(score=0.4, events=[stalled]))
    found = of(episode(*turns))
    assert (
        found["stalled_share"] == 0.5
        and found["gamma_p90"] == pytest.approx(0.3, rel=0.3)
        and found["gamma_p10"] < 1e-6
    )


@pytest.mark.parametrize(
    ("uncertainty", "expected"),
    [
        ([0.5, 0.5, 0.1, 0.1, 0.1], (5, 2)),
        ([0.5, 0.5 + FLAT / 2, 0.5], (3, 2)),  # nothing changes: flat after its first token
        ([0.5, nan, 0.9, 0.1], (3, 0)),
        ([0.5], None),
        ([], None),
    ],
)
def test_flat_thinking_is_what_follows_the_last_change(
    uncertainty: list[float], expected: tuple[int, int] | None
) -> None:
    assert flat_tail(uncertainty) == expected


def test_forced_tokens_are_those_of_interventions() -> None:
    cut, keep = (
        ControlEvent(kind, "settled", position=1, value=0.0, threshold=0.1)
        for kind in ("intervene", "keep")
    )
    rejected = attempt(
        20, forced=4, events=[cut]
    )  # its first token is before the cut: it merely has no log-prob, as all of the next two
    found = of(
        episode(
            turn("a", "x", attempt(10, forced=5, events=[keep]), rejected=[rejected]),
            turn("b", "x", attempt(10, forced=5)),
        )
    )
    assert found["forced_share"] == pytest.approx(3 / 40)


def test_turns_are_told_apart_by_the_age_of_their_oldest_token() -> None:
    fresh = attempt(version=4)
    old = attempt(version=2)
    parts = count_by_age(
        [
            [
                episode(turn("a", "x", old), turn("b", "x", fresh), success=True),
                episode(turn("c", "x", fresh), member=1),
            ]
        ],
        4,
    )
    assert {age: (t.turns, t.episodes, t.successes, t.groups) for age, t in parts.items()} == {
        0: (2, 1, 0, 0),
        2: (1, 1, 1, 1),
    }
    found = Exploration().observe_batch([[episode(turn("a", "x", old), turn("b", "x", fresh))]], 4)
    assert found["coverage_states/age2"] == found["coverage_states/age0"] == 100.0
    assert undocumented_names(list(found)) == []


def test_turns_of_weights_that_a_crash_has_lost_are_new() -> None:
    assert set(count_by_age([[episode(turn("a", "x", attempt(version=5)))]], 3)) == {0}


def test_novelty_is_against_all_batches_before() -> None:
    seen = Exploration()
    first = seen.observe_batch([[episode(turn("a", "x"), turn("b", "x"))]], 0)
    second = seen.observe_batch([[episode(turn("a", "x"), turn("c", "x"), turn("b", "y"))]], 1)
    assert (first["novel_states"], first["novel_pairs"]) == (1.0, 1.0)
    assert (second["novel_states"], second["novel_pairs"]) == pytest.approx((1 / 3, 2 / 3))
    assert (second["known_states"], second["known_pairs"]) == (3, 4)


@st.composite
def some_turn(draw) -> Turn:
    length = draw(st.integers(1, 6))
    score = draw(st.sampled_from([nan, 0.0, 0.1, 0.7, 1.0]))
    signal = draw(st.lists(st.floats(0, 1), max_size=length))
    kept = attempt(
        length,
        draw(st.integers(0, 3)),
        score=score,
        thinking=draw(st.integers(0, 5)),
        uncertainty=signal,
    )
    rejected = [attempt(3)] * draw(st.integers(0, 2))
    return turn(
        draw(st.sampled_from("abc")),
        draw(st.sampled_from("xyz")),
        kept,
        rejected=rejected,
        reward=draw(st.floats(0, 1)),
    )


some_episode = st.builds(
    lambda turns, member, success: episode(*turns, member=member, success=success),
    st.lists(some_turn(), max_size=4),
    st.integers(0, 9),
    st.booleans(),
)


def played() -> st.SearchStrategy[list[list[Trajectory]]]:
    return st.lists(st.lists(some_episode, min_size=1, max_size=3), max_size=3)


SHARES = (
    "repeated_states",
    "repeated_pairs",
    "first_actions",
    "distinct_paths",
    "informative_share",
    "stalled_share",
    "flat_thinking",
    "rejected_share",
    "forced_share",
    "novel_states",
    "novel_pairs",
)


@given(played())
def test_shares_are_shares_and_a_pair_repeats_only_where_its_state_does(
    groups: list[list[Trajectory]],
) -> None:
    found = Exploration().observe_batch(groups, 3)
    assert all(0 <= value <= 1 for name, value in found.items() if name.partition("/")[0] in SHARES)
    assert found["known_states"] <= found["known_pairs"]
    assert found.get("repeated_pairs", 0) <= found.get("repeated_states", 0)


@given(played(), st.integers(0, 3))
def test_tallies_of_parts_add_up_to_that_of_the_whole(
    groups: list[list[Trajectory]], cut: int
) -> None:
    parts = [merge_counts(count_by_age(some, 3).values()) for some in (groups[:cut], groups[cut:])]
    assert compute_measures(merge_counts(parts)) == compute_measures(
        merge_counts(count_by_age(groups, 3).values())
    )


@given(played(), played())
def test_what_is_known_only_grows(
    first: list[list[Trajectory]], second: list[list[Trajectory]]
) -> None:
    seen = Exploration()
    before = seen.observe_batch(first, 3)
    after = seen.observe_batch(second, 4)
    assert (
        after["known_states"] >= before["known_states"]
        and after["known_pairs"] >= before["known_pairs"]
    )


@given(st.lists(st.floats(1e-6, 1), min_size=1), st.floats(0.01, 1))
def test_a_quantile_of_the_histogram_is_that_of_the_values_to_a_bins_width(
    values: list[float], share: float
) -> None:
    counts = np.histogram(values, GAMMA_BINS)[0]
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert quantile(counts, share) == pytest.approx(exact, rel=0.26)


def test_what_a_run_remembers_is_bounded_and_its_numbers_stay_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("telemetry.analysis.exploration.LIMIT", 1000)
    seen = Exploration()
    rng = np.random.default_rng(0)
    batches = [set(rng.integers(0, 2**63, 400).tolist()) for _ in range(40)]
    for digests in [*batches[:39], batches[38] | batches[39]]:
        found = seen.remember("states", digests)
        assert len(seen.states) <= 1000
    assert found["known_states"] == pytest.approx(40 * 400, rel=0.15)
    assert found["novel_states"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("returns", "equal"),
    [
        ([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1], True),
        ([0.0, 0.0], True),
        ([1.0, 1.0 + 1e-6], False),
        ([0.0, 1e-12], False),
    ],
)
def test_returns_are_equal_but_for_rounding(returns: list[float], equal: bool) -> None:
    assert equal_returns(returns) is equal
