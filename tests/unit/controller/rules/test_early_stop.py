"""Turns that are ended before they are complete: how often that is wrong, and what it saves."""

from __future__ import annotations

from math import exp, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rules.early_stop import FIRST_LOOK, EarlyStopTest, student_quantile
from controller.rules.stall import turn_score

MOST = 400
"""Tokens of a turn."""


def simulated(delta: float, eta: float, turns: int = 3000) -> tuple[int, int, int]:
    """Simulate turns: (ended, of these wrongly, tokens saved).

    Their tokens' log-scores are normal, and each turn has a mean of its own.
    """
    rng = np.random.default_rng(0)
    ended = wrong = saved = 0
    for _ in range(turns):
        scores = np.exp(rng.normal(-1.0 + 0.2 * rng.normal(), 0.3, MOST)).tolist()
        rule = EarlyStopTest(delta, exp(-1.0), eta, MOST)
        if rule.observe(scores):
            ended += 1
            saved += MOST - 1 - rule.position
            wrong += abs(turn_score(scores) - exp(-1.0)) >= eta
    return ended, wrong, saved


@pytest.mark.slow
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
def test_turns_of_independent_tokens_are_ended_wrongly_no_more_often_than_delta(
    delta: float,
) -> None:
    ended, wrong, saved = simulated(delta, eta=0.08)
    assert ended > 300 and saved > 50 * ended
    assert wrong <= delta * ended + 3 * (delta * ended) ** 0.5


def test_a_larger_delta_ends_turns_sooner() -> None:
    assert simulated(0.01, eta=0.08, turns=500)[2] < simulated(0.2, eta=0.08, turns=500)[2]


def test_nothing_is_ended_before_the_first_look() -> None:
    rule = EarlyStopTest(0.05, 0.5, 10.0, MOST)
    assert not rule.observe([0.5] * (FIRST_LOOK - 1))
    assert rule.observe([0.5] * FIRST_LOOK) and rule.position == FIRST_LOOK - 1


def test_it_says_so_once() -> None:
    rule = EarlyStopTest(0.05, 0.5, 10.0, MOST)
    assert rule.observe([0.5] * FIRST_LOOK) and not rule.observe([0.5] * 4 * FIRST_LOOK)


def test_a_turn_far_from_the_one_before_goes_on() -> None:
    assert not EarlyStopTest(0.05, 0.1, 0.01, MOST).observe([0.5] * MOST)


@given(
    st.lists(st.one_of(st.floats(0, 1), st.just(nan)), max_size=200),
    st.lists(st.integers(0, 200), max_size=5),
    st.sampled_from(["geometric", "arithmetic"]),
    st.sampled_from([0, 5]),
)
def test_it_does_not_matter_in_how_many_parts_the_scores_come(
    scores: list[float], cuts: list[int], mean: str, skip: int
) -> None:
    whole, parts = (EarlyStopTest(0.2, 0.5, 0.3, MOST, mean, skip) for _ in range(2))
    found = whole.observe(scores)
    assert (
        any([parts.observe(scores[:cut]) for cut in sorted(cuts)] + [parts.observe(scores)])
        is found
    )
    assert parts.position == whole.position
    assert whole.position is None or (
        scores[whole.position] == scores[whole.position] and whole.position >= skip + FIRST_LOOK - 1
    )


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    [
        (0.975, 15, 2.13145),
        (0.975, 31, 2.03951),
        (0.9999, 15, 4.88000),
        (0.99, 63, 2.38701),
    ],  # tables of Student's t
)
def test_the_quantile_is_students(share: float, freedom: int, expected: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(expected, rel=2e-3)
