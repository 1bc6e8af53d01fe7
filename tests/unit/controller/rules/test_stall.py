"""The turn-level rule."""

from __future__ import annotations

from math import nan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.rules.stall import Stall, find_stall, score_change, turn_score


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=50))
def test_the_score_is_the_geometric_mean(values):
    np.testing.assert_allclose(
        turn_score(values),
        np.prod(np.array(values, dtype=np.longdouble)) ** (1 / len(values)),
        rtol=1e-6,
    )


def test_tokens_without_a_signal_do_not_count_in_the_score():
    assert turn_score([0.5, nan, 0.5]) == turn_score([0.5, 0.5])


def test_a_turn_without_any_signal_has_no_score():
    assert turn_score([nan, nan]) is None and turn_score([]) is None


def test_the_least_uncertain_token_does_not_make_the_score_zero():
    assert turn_score([0.0, 1.0]) > 0


@given(st.lists(st.floats(-5, 1), min_size=1, max_size=50))
def test_the_authors_score_is_the_arithmetic_mean_after_the_first_32_tokens(values):
    np.testing.assert_allclose(
        turn_score([9.0] * 32 + values, "arithmetic", 32), np.mean(values), rtol=1e-9, atol=1e-12
    )


def test_a_turn_shorter_than_what_is_skipped_has_no_score():
    assert turn_score([0.5] * 32, "arithmetic", 32) is None


def test_no_change_at_all_is_a_stall_but_not_in_the_authors_code():
    assert find_stall(0.0, eta=0.3) == Stall(0.0, 0.3)
    assert find_stall(0.0, eta=0.3, zero_counts=False) is None
    assert find_stall(0.1, eta=0.3, zero_counts=False) == Stall(0.1, 0.3)


def test_a_turn_like_the_one_before_is_stalled():
    assert find_stall(score_change(0.5, 0.5005), eta=1e-3) == Stall(
        change=abs(0.5 - 0.5005), threshold=1e-3
    )


def test_a_turn_unlike_the_one_before_is_not_stalled():
    assert find_stall(score_change(0.5, 0.6), eta=1e-3) is None


def test_the_first_turn_is_never_stalled():
    assert find_stall(score_change(0.5, None), eta=1e9) is None


def test_a_turn_without_a_score_is_never_stalled():
    assert (
        find_stall(score_change(None, 0.5), eta=1e9) is None
        and find_stall(score_change(0.5, None), eta=1e9) is None
    )
