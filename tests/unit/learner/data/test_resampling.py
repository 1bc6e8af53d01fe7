"""The weight that undoes the sampling of stalled turns again."""

from __future__ import annotations

from math import nan

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ControlSection, LearnerSection
from learner.data.resampling import resampling_weight, stall_rate
from learner.data.samples import build_samples
from protocol.messages import ControlEvent, Turn
from tests.fixtures.learner import random_group, random_turn

VOCABULARY = 50


def turn(*kinds: str, eta: float = 0.1, reason: str = "stalled") -> Turn:
    """Make a turn whose samples ended so.

    "resample" ones come first, then one that is kept ("keep": stalled, or "").
    """
    rng = np.random.default_rng(0)
    made = [
        msgspec.structs.replace(
            random_turn(rng, VOCABULARY).kept,
            eta=eta,
            events=[ControlEvent(kind, reason, 3, 0.01, eta)] if kind else [],
        )
        for kind in kinds
    ]
    return msgspec.structs.replace(random_turn(rng, VOCABULARY), rejected=made[:-1], kept=made[-1])


@given(st.floats(0.01, 0.9), st.integers(0, 4))
def test_weights_are_one_on_average_over_what_is_kept(rate: float, resamples: int):
    """Under q, the sum of q(y) p(y)/q(y) is the sum of p."""
    accepted = (1 - rate) * (1 - rate ** (resamples + 1)) / (1 - rate)
    kept = rate ** (resamples + 1)
    cap = float("inf")
    mean = accepted * resampling_weight(turn(""), rate, resamples, cap) + kept * resampling_weight(
        turn("keep"), rate, resamples, cap
    )
    assert accepted + kept == pytest.approx(1) and mean == pytest.approx(1)


def test_weighted_means_are_those_of_the_policy_without_control():
    """Weighted means are those of the policy without control.

    Responses are sampled as the controller does; a quantity that differs between stalled and other
    ones keeps its mean under p.
    """
    rate = 0.3
    resamples = 2
    is_stalled = np.random.default_rng(0).random((40_000, resamples + 1)) < rate
    stays_stalled = is_stalled.all(axis=1)  # all samples of a turn, so that the last one is kept
    stalled, other = (resampling_weight(turn(kind), rate, resamples, 1e9) for kind in ("keep", ""))
    weighted = np.where(stays_stalled, 10.0 * stalled, 1.0 * other)
    assert weighted.mean() == pytest.approx(rate * 10 + (1 - rate) * 1, rel=0.05)


def test_the_rate_is_of_all_samples_that_could_have_stalled():
    turns = [
        turn(""),
        turn("resample", ""),
        turn("resample", "resample", "keep"),
        turn("", eta=nan),
    ]
    assert stall_rate(turns) == pytest.approx(4 / 6)
    assert stall_rate([]) == stall_rate([turn("", eta=nan)]) == 0.0


def test_samples_that_were_ended_early_have_stalled():
    assert stall_rate([turn("resample", "", reason="early")]) == 0.5


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(turn(""), (1 - 0.5) / (1 - 0.5**3)), (turn("keep"), 3.0), (turn("", eta=nan), 1.0)],
)
def test_a_weight_is_truncated_and_leaves_alone_what_could_not_stall(kept: Turn, expected: float):
    assert resampling_weight(kept, 0.5, 2, cap=3.0) == pytest.approx(expected)


def test_the_weight_multiplies_the_advantage_only_when_asked():
    group = random_group(np.random.default_rng(1), VOCABULARY, members=4)
    stalling = [
        msgspec.structs.replace(
            e, turns=[msgspec.structs.replace(t, kept=turn("keep").kept) for t in e.turns]
        )
        for e in group
    ]
    group = [*stalling[:2], *group[2:]]
    plain, weighted = (
        [
            s.advantage
            for s in build_samples([group], 0, LearnerSection(resampling=name), ControlSection())
        ]
        for name in ("ignore", "weight")
    )
    # Every judged sample stalled: a rate of 1, of which nothing can be learned.
    assert plain == weighted
    group[0] = msgspec.structs.replace(
        group[0], turns=[msgspec.structs.replace(t, kept=turn("").kept) for t in group[0].turns]
    )
    rate = stall_rate([t for e in group for t in e.turns])
    turns = [t for e in group for t in e.turns]
    expected = [
        a * resampling_weight(t, rate, 2, LearnerSection().resampling_cap)
        for a, t in zip(plain, turns, strict=True)
    ]
    weighted = [
        s.advantage
        for s in build_samples([group], 0, LearnerSection(resampling="weight"), ControlSection())
    ]
    assert 0 < rate < 1 and weighted == pytest.approx(expected)
