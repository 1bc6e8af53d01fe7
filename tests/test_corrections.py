"""Corrections and their diagnostics against slow float64 references, and their gradients against the textbook formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import LearnerSection
from learner.corrections import CORRECTIONS
from learner.corrections.diagnostics import divergence, effective_sample_size, token_ages

SETTINGS = LearnerSection(clip_low=0.2, clip_high=0.3, tis_cap=2.0)

LOG_RATIOS = [-3.0, -1.5, -0.5, -0.25, -0.05, 0.0, 0.1, 0.5, 1.0, 1.7]
"""On both sides of every bound, never on one, where a gradient is not defined."""

tokens = st.lists(
    st.tuples(st.floats(-8, 0), st.sampled_from(LOG_RATIOS), st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])), min_size=1, max_size=20
)
"""(log pi, log pi - log mu, advantage)"""


def tensors(rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_pi, log_r, advantage = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    return log_pi.requires_grad_(), log_pi.detach() - log_r, advantage


def ppo_reference(log_pi: float, log_mu: float, advantage: float) -> tuple[float, float, bool]:
    """(loss, its derivative by log pi, clipped)"""
    ratio = math.exp(log_pi - log_mu)
    loss = max(-ratio * advantage, -min(max(ratio, 0.8), 1.3) * advantage)
    if advantage < 0:
        loss = min(loss, -3.0 * advantage)
    free = math.isclose(loss, -ratio * advantage, rel_tol=1e-12)
    return loss, -ratio * advantage if free else 0.0, not free


def tis_reference(log_pi: float, log_mu: float, advantage: float) -> tuple[float, float, bool]:
    ratio = math.exp(log_pi - log_mu)
    weight = min(ratio, 2.0)
    return -weight * advantage * log_pi, -weight * advantage, ratio > 2.0


@pytest.mark.parametrize(("name", "reference"), [("ppo", ppo_reference), ("tis", tis_reference)])
@given(rows=tokens)
def test_correction_and_gradient_equal_the_textbook(name, reference, rows):
    log_pi, log_mu, advantage = tensors(rows)
    loss, clipped = CORRECTIONS[name](log_pi, log_mu, advantage, SETTINGS)
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    for i, token in enumerate(zip(log_pi.tolist(), log_mu.tolist(), advantage.tolist(), strict=True)):
        expected_loss, expected_gradient, expected_clipped = reference(*token)
        assert loss[i].item() == pytest.approx(expected_loss, rel=1e-9, abs=1e-12)
        assert gradient[i].item() == pytest.approx(expected_gradient, rel=1e-9, abs=1e-12)
        assert bool(clipped[i]) == expected_clipped


@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_policy_every_correction_is_the_policy_gradient(name):
    log_pi = torch.tensor([-0.1, -2.0, -5.0], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 0.5])
    loss, clipped = CORRECTIONS[name](log_pi, log_pi.detach(), advantage, SETTINGS)
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    torch.testing.assert_close(gradient, -advantage)
    assert not clipped.any()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_absurd_ratios_stay_finite(name):
    log_pi = torch.tensor([-0.001, -300.0], requires_grad=True)
    loss, _ = CORRECTIONS[name](log_pi, torch.tensor([-300.0, -0.001]), torch.tensor([-1.0, 1.0]), SETTINGS)
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_divergence_of_a_policy_from_itself_is_nothing():
    log_p = np.array([-0.5, -1.0, -3.0], dtype=np.float32)
    measures = divergence(log_p, log_p, np.array([0, 0, 1]))
    assert measures["ratio_p50"] == measures["effective_sample_size"] == 1.0
    assert measures["kl"] == measures["kl_k1"] == measures["mismatch_age0"] == 0.0


def test_divergence_keeps_numerics_and_staleness_apart():
    log_mu = np.zeros(4, dtype=np.float32)
    log_pi = np.log(np.array([1.0, 1.0, 2.0, 2.0], dtype=np.float32))
    measures = divergence(log_pi, log_mu, np.array([0, 0, 1, 3]))
    assert measures["ratio_age0_p99"] == pytest.approx(1.0) and measures["ratio_old_p99"] == pytest.approx(2.0)
    assert measures["kl_age0"] == pytest.approx(0.0) and measures["kl_old"] == pytest.approx(1 - math.log(2))


def test_token_ages_count_every_token():
    assert token_ages(np.array([0, 0, 1, 3])) == {"token_age_mean": 1.0, "token_age_max": 3.0, "token_age0_share": 0.5}
    assert token_ages(np.array([], dtype=int)) == {}


def test_divergence_over_one_age_leaves_the_other_out():
    measures = divergence(np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, int))
    assert "ratio_age0_p99" not in measures and "mismatch_age0" not in measures and "ratio_old_p99" in measures


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_effective_sample_size_is_a_share(weights):
    share = effective_sample_size(np.array(weights))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
