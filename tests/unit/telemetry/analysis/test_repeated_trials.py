"""Success of tasks that were played several times: pass@k and its intervals."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.analysis.intervals import wilson_interval
from telemetry.analysis.repeated_trials import (
    Trials,
    estimate_pass_at_k,
    pass_at_k,
    reported_ks,
)

SAMPLES = st.integers(1, 9)


def share_of_subsets(outcomes: list[bool], k: int) -> Fraction:
    """The slow reference: of all choices of `k` samples, those with a success."""
    chosen = list(combinations(outcomes, k))
    return Fraction(sum(map(any, chosen)), len(chosen))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_success(
    outcomes: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    expected = float(share_of_subsets(outcomes, k))
    assert pass_at_k(sum(outcomes), len(outcomes), k) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_of_many_samples_agrees_with_exact_binomials(
    samples: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    exact = 1 - Fraction(comb(samples - successes, k), comb(samples, k))
    assert pass_at_k(successes, samples, k) == pytest.approx(float(exact), abs=1e-9)


@given(SAMPLES, st.floats(0, 1), st.data())
def test_pass_at_k_is_unbiased(samples: int, probability: float, data: st.DataObject) -> None:
    """Its mean over what samples may come to is the chance that one of k independent ones wins."""
    k = data.draw(st.integers(1, samples))
    mean = sum(
        comb(samples, c)
        * probability**c
        * (1 - probability) ** (samples - c)
        * pass_at_k(c, samples, k)
        for c in range(samples + 1)
    )
    assert mean == pytest.approx(1 - (1 - probability) ** k, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "samples", "k"), [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (0, 2, 0)]
)
def test_pass_at_k_of_impossible_counts_is_refused(successes: int, samples: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(successes, samples, k)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_estimate_of_one_sample_a_task_is_the_share_with_wilsons_interval(
    outcomes: list[bool],
) -> None:
    estimate = estimate_pass_at_k([Trials(int(outcome), 1) for outcome in outcomes])
    share = sum(outcomes) / len(outcomes)
    assert estimate.mean == pytest.approx(share)
    assert estimate[1:3] == pytest.approx(wilson_interval(share, len(outcomes)))
    assert estimate.tasks == len(outcomes)


TRIALS = st.lists(
    SAMPLES.flatmap(lambda n: st.builds(Trials, st.integers(0, n), st.just(n))),
    min_size=1,
    max_size=30,
)


@given(TRIALS, st.integers(1, 9))
def test_estimate_lies_in_its_interval_and_counts_each_task_once(
    trials: list[Trials], k: int
) -> None:
    counted = [one for one in trials if one.samples >= k]
    estimate = estimate_pass_at_k(trials, k)
    if not counted:
        assert estimate is None
        return
    assert estimate.tasks == len(counted)
    assert estimate.mean == pytest.approx(fmean(pass_at_k(*one, k) for one in counted))
    assert -1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean <= estimate.high + 1e-9 <= 1 + 2e-9


@given(TRIALS)
def test_estimate_is_never_wider_than_that_of_one_sample_a_task(trials: list[Trials]) -> None:
    """Further samples of the same tasks tell more, and at most as much as further tasks would."""
    estimate = estimate_pass_at_k(trials)
    width = estimate.high - estimate.low
    widest = wilson_interval(estimate.mean, len(trials))
    narrowest = wilson_interval(estimate.mean, sum(one.samples for one in trials))
    assert narrowest[1] - narrowest[0] - 1e-9 <= width <= widest[1] - widest[0] + 1e-9


def bootstrap_interval(trials: list[Trials], k: int, rng: np.random.Generator) -> tuple:
    """The slow reference: of so many tasks drawn with replacement, as Chen et al. would have it."""
    values = np.array([pass_at_k(*one, k) for one in trials])
    means = rng.choice(values, (4000, len(values))).mean(1)
    return tuple(np.quantile(means, [0.025, 0.975]))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_estimate_of_many_tasks_agrees_with_a_bootstrap_over_tasks(k: int) -> None:
    rng = np.random.default_rng(k)
    chances = rng.beta(0.7, 0.7, 600)
    trials = [Trials(int(successes), 4) for successes in rng.binomial(4, chances)]
    low, high = bootstrap_interval(trials, k, rng)
    estimate = estimate_pass_at_k(trials, k)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.3), (1, 1), (20, 20), (2, 0.4)])
@pytest.mark.parametrize("k", [1, 3])
def test_interval_covers_the_truth_as_often_as_it_says(a: float, b: float, k: int) -> None:
    """Tasks differ, as draws of a beta distribution; the mean over all of them is known."""
    rng = np.random.default_rng(7)
    terms = np.arange(k)
    truth = 1 - np.prod((b + terms) / (a + b + terms))
    covered = 0
    for chances in rng.beta(a, b, (400, 64)):
        trials = [Trials(int(successes), 4) for successes in rng.binomial(4, chances)]
        estimate = estimate_pass_at_k(trials, k)
        covered += estimate.low <= truth <= estimate.high
    assert 0.91 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, []), (2, [2]), (4, [2, 4]), (6, [2, 4, 6]), (8, [2, 4, 8])]
)
def test_reported_ks_are_powers_of_two_and_all_samples(samples: int, ks: list[int]) -> None:
    assert reported_ks(samples) == ks
