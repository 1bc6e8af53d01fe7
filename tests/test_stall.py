"""The turn-level rule."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.stall import Stall, stalled, turn_score


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=50))
def test_the_score_is_the_geometric_mean(values):
    np.testing.assert_allclose(turn_score(values), np.prod(np.array(values, dtype=np.longdouble)) ** (1 / len(values)), rtol=1e-6)


def test_tokens_without_a_signal_do_not_count_in_the_score():
    assert turn_score([0.5, nan, 0.5]) == turn_score([0.5, 0.5])


def test_a_turn_without_any_signal_has_no_score():
    assert isnan(turn_score([nan, nan])) and isnan(turn_score([]))


def test_the_least_uncertain_token_does_not_make_the_score_zero():
    assert turn_score([0.0, 1.0]) > 0


def test_a_turn_like_the_one_before_is_stalled():
    assert stalled(0.5, 0.5005, eta=1e-3) == Stall(change=abs(0.5 - 0.5005), threshold=1e-3)


def test_a_turn_unlike_the_one_before_is_not_stalled():
    assert stalled(0.5, 0.6, eta=1e-3) is None


def test_the_first_turn_is_never_stalled():
    assert stalled(0.5, None, eta=1e9) is None


def test_a_turn_without_a_score_is_never_stalled():
    assert stalled(nan, 0.5, eta=1e9) is None and stalled(0.5, nan, eta=1e9) is None
