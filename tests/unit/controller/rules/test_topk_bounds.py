"""Signals estimated from the most likely tokens."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rules.topk_bounds import entropy_bounds, estimate_from_topk

logits = st.lists(st.floats(-30, 30), min_size=3, max_size=60)


def distribution(values: list[float]) -> np.ndarray:
    """Log-probs, most likely first, float64."""
    array = np.sort(np.array(values))[::-1]
    return array - array.max() - np.log(np.exp(array - array.max()).sum())


def entropy(log_probs: np.ndarray) -> float:
    return float(-(np.exp(log_probs) * log_probs).sum())


@given(logits, st.integers(1, 20))
def test_the_true_entropy_lies_between_the_bounds(values, k):
    log_probs = distribution(values)
    least, largest = entropy_bounds(log_probs[:k].tolist(), [], len(values))
    assert least - 1e-9 <= entropy(log_probs) <= largest + 1e-9


@given(logits, st.integers(1, 5), st.integers(0, 60))
def test_a_sampled_token_that_is_unlikely_narrows_the_bounds(values, k, which):
    log_probs = distribution(values)
    sampled = k + which % (len(values) - k) if k < len(values) else None
    if sampled is None:
        return
    top = log_probs[:k].tolist()
    other = float(log_probs[sampled])
    least, largest = entropy_bounds(top, [other], len(values))
    assert least - 1e-9 <= entropy(log_probs) <= largest + 1e-9
    wider = entropy_bounds(top, [], len(values))
    assert largest - least <= wider[1] - wider[0] + 1e-9


@given(logits)
def test_with_all_tokens_known_the_estimate_is_exact(values):
    log_probs = distribution(values)
    h, confidence, top = estimate_from_topk(log_probs.tolist(), [], len(values), top_j=3)
    assert (h, confidence, top) == pytest.approx(
        (entropy(log_probs), -log_probs[:3].mean(), log_probs[0]), abs=1e-9
    )


def test_topk_bounds_are_met_by_a_uniform_rest_and_by_one_as_likely_as_the_last():
    """A uniform rest meets the upper bound and one as likely as the last known the lower."""
    half = [log(0.5)]
    assert entropy_bounds([log(0.5)], [], 11)[1] == pytest.approx(0.5 * log(2) + 0.5 * log(20))
    assert entropy_bounds(half, [], 2) == (pytest.approx(log(2)), pytest.approx(log(2)))


def test_impossible_tokens_count_for_nothing():
    assert estimate_from_topk([0.0, float("-inf")], [], 100, 2) == (0.0, 0.0, 0.0)


def test_the_confidence_is_of_those_tokens_that_are_known():
    assert estimate_from_topk([log(0.5), log(0.25)], [], 100, top_j=20)[1] == pytest.approx(
        -(log(0.5) + log(0.25)) / 2
    )
    assert exp(estimate_from_topk([log(0.25), log(0.5)], [], 100, 20)[2]) == pytest.approx(0.5)
