"""What keeps a run from learning is said, with the settings to change."""

from __future__ import annotations

import pytest

from telemetry.analysis.advice import find_advice

FAILING = {
    "success": 0.0,
    "informative_share": 0.0,
    "valid_action_rate": 0.9,
    "truncated_share": 0.0,
    "episodes": 64,
}


def test_find_advice_on_updates_without_a_success_names_the_levers() -> None:
    """Five updates without a success, and without a group to learn from, are said."""
    assert find_advice([FAILING] * 4, []) == {}
    (words,) = find_advice([FAILING] * 5, []).values()
    assert "none of the last 320 training episodes succeeded" in words
    assert "env.max_turns" in words and "warm_start.episodes" in words


@pytest.mark.parametrize("change", [{"success": 0.01}, {"informative_share": 0.1}])
def test_find_advice_on_anything_to_learn_from_says_nothing(change: dict[str, float]) -> None:
    """One success, or one group whose returns differ, is something to learn from."""
    assert find_advice([FAILING | change, *[FAILING] * 4], []) == {}


def test_find_advice_on_turns_that_are_cut_off_names_the_budget() -> None:
    """That most turns hit the token budget is said after the first evaluation."""
    words = find_advice([], [FAILING | {"truncated_share": 1.0}])["cut off"]
    assert words.startswith("100.0 % of the turns were cut off at sampling.max_tokens")
    assert find_advice([], [FAILING | {"truncated_share": 0.4}]) == {}


def test_find_advice_on_no_valid_action_says_so() -> None:
    """That no response had an action is said after the first evaluation."""
    assert (
        "no response had a valid action"
        in (find_advice([], [FAILING | {"valid_action_rate": 0.0}])["no valid action"])
    )


def test_find_advice_on_a_few_episodes_says_nothing() -> None:
    """An evaluation of a few games says nothing about a policy."""
    few = FAILING | {"truncated_share": 1.0, "valid_action_rate": 0.0, "episodes": 8}
    assert find_advice([], [few]) == {}
