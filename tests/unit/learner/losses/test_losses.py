"""Corrections and their diagnostics against slow float64 references.

Their gradients are held to the textbook formulas.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import MisLoss
from learner.losses import LOSSES, Tokens
from learner.losses.diagnostics import divergence, effective_sample_size, token_ages
from learner.losses.kl import reference_kl
from telemetry.analysis.collapse import collapse_signs
from tests.fixtures.learner import make_loss

BOUNDS = {
    "clip_low": 0.2,
    "clip_high": 0.3,
    "tis_cap": 2.0,
    "mis_low": 0.5,
    "mis_high": 2.0,
    "vtrace_rho": 1.4,
}
SETTINGS = {name: make_loss(name, **BOUNDS) for name in LOSSES}

LOG_RATIOS = [-3.0, -1.5, -0.5, -0.25, -0.05, 0.0, 0.1, 0.5, 1.0, 1.7]
"""On both sides of every bound, never on one, where a gradient is not defined."""

rows = st.lists(
    st.tuples(
        st.floats(-8, 0),
        st.sampled_from(LOG_RATIOS),
        st.sampled_from(LOG_RATIOS),
        st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=20,
)
"""(log pi, log pi - log mu, log pi - log pi_prox, advantage, turn)"""


def tokens_of(columns) -> Tokens:
    log_pi, log_r, log_step, advantage = (
        torch.tensor(column, dtype=torch.float64) for column in columns[:4]
    )
    return Tokens(
        log_pi.requires_grad_(),
        log_pi.detach() - log_r,
        log_pi.detach() - log_step,
        advantage,
        torch.tensor(columns[4]),
        3,
    )


def on_policy(log_pi: torch.Tensor, advantage: torch.Tensor) -> Tokens:
    same = log_pi.detach()
    return Tokens(log_pi, same, same, advantage, torch.zeros(len(log_pi), dtype=torch.long), 1)


def surrogate(ratio: float, advantage: float) -> tuple[float, bool]:
    """PPO's loss with both clips, and whether one of them holds."""
    loss = max(-ratio * advantage, -min(max(ratio, 0.8), 1.3) * advantage)
    if advantage < 0:
        loss = min(loss, -3.0 * advantage)
    return loss, not math.isclose(loss, -ratio * advantage, rel_tol=1e-12)


# Each: (log r, log of the step, advantage, log pi, log r of the turn's tokens) -> (loss, derivative
# by this log pi, clipped, kept)


def none_reference(log_r, log_step, advantage, log_pi, turn):
    return -advantage * log_pi, -advantage, False, True


def ppo_reference(log_r, log_step, advantage, log_pi, turn):
    loss, clipped = surrogate(math.exp(log_r), advantage)
    return loss, 0.0 if clipped else -math.exp(log_r) * advantage, clipped, True


def decoupled_reference(log_r, log_step, advantage, log_pi, turn):
    loss, clipped = surrogate(math.exp(log_step), advantage)
    age = math.exp(log_r - log_step)
    weight = min(age, 2.0)
    return (
        weight * loss,
        0.0 if clipped else -weight * math.exp(log_step) * advantage,
        clipped or age > 2.0,
        True,
    )


def tis_reference(log_r, log_step, advantage, log_pi, turn):
    weight = min(math.exp(log_r), 2.0)
    return -weight * advantage * log_pi, -weight * advantage, math.exp(log_r) > 2.0, True


def mis_reference(log_r, log_step, advantage, log_pi, turn):
    kept = 0.5 <= math.exp(log_r) <= 2.0
    weight = math.exp(log_r) if kept else 0.0
    return -weight * advantage * log_pi, -weight * advantage, False, kept


def gspo_reference(log_r, log_step, advantage, log_pi, turn):
    ratio = math.exp(math.fsum(turn) / len(turn))
    loss, clipped = surrogate(ratio, advantage)
    return loss, None, clipped, True


def cispo_reference(log_r, log_step, advantage, log_pi, turn):
    weight = min(max(math.exp(log_r), 0.8), 1.3)
    return -weight * advantage * log_pi, -weight * advantage, weight != math.exp(log_r), True


def vtrace_reference(log_r, log_step, advantage, log_pi, turn):
    weight = min(math.exp(math.fsum(turn)), BOUNDS["vtrace_rho"])
    return (
        -weight * advantage * log_pi,
        -weight * advantage,
        math.exp(math.fsum(turn)) > BOUNDS["vtrace_rho"],
        True,
    )


REFERENCES = {
    "reinforce": none_reference,
    "ppo": ppo_reference,
    "decoupled": decoupled_reference,
    "tis": tis_reference,
    "mis": mis_reference,
    "gspo": gspo_reference,
    "cispo": cispo_reference,
    "vtrace": vtrace_reference,
}


@pytest.mark.parametrize("name", LOSSES)
@given(rows=rows)
def test_correction_and_gradient_equal_the_textbook(name, rows):
    columns = list(zip(*rows, strict=True))
    tokens = tokens_of(columns)
    loss, clipped, kept = LOSSES[name](tokens, SETTINGS[name])
    (gradient,) = torch.autograd.grad(loss.sum(), tokens.log_pi)
    for i, (log_pi, log_r, log_step, advantage, turn) in enumerate(rows):
        together = [other for other, of in zip(columns[1], columns[4], strict=True) if of == turn]
        expected, slope, was_clipped, was_kept = REFERENCES[name](
            log_r, log_step, advantage, log_pi, together
        )
        assert loss[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert slope is None or gradient[i].item() == pytest.approx(slope, rel=1e-9, abs=1e-12)
        assert (bool(clipped[i]), bool(kept[i])) == (was_clipped, was_kept)


@given(rows=rows)
def test_the_gradient_of_a_turns_ratio_reaches_each_of_its_tokens(rows):
    """The gradient of a turn's ratio is that of differences of the loss, written out.

    The loss is the sum over tokens of the surrogate of exp(mean log r of their turn).
    """
    columns = list(zip(*rows, strict=True))
    tokens = tokens_of(columns)
    (gradient,) = torch.autograd.grad(
        LOSSES["gspo"](tokens, SETTINGS["gspo"]).loss.sum(), tokens.log_pi
    )
    step = 1e-6

    def total(moved: int, by: float) -> float:
        log_r = [value + by * (i == moved) for i, value in enumerate(columns[1])]
        means = {
            t: [r for r, of in zip(log_r, columns[4], strict=True) if of == t]
            for t in set(columns[4])
        }
        return math.fsum(
            surrogate(math.exp(math.fsum(means[t]) / len(means[t])), a)[0]
            for a, t in zip(columns[3], columns[4], strict=True)
        )

    for i, (_, _, _, _, turn) in enumerate(rows):
        log_r = [r for r, of in zip(columns[1], columns[4], strict=True) if of == turn]
        ratio = math.exp(math.fsum(log_r) / len(log_r))
        if min(abs(ratio - bound) for bound in (0.8, 1.3, 3.0)) > 1e-3:  # there is a derivative
            assert gradient[i].item() == pytest.approx(
                (total(i, step) - total(i, -step)) / (2 * step), rel=1e-4, abs=1e-6
            )


def test_a_turn_is_left_out_as_a_whole_by_its_geometric_mean():
    log_mu = torch.tensor([0.0, 0.0, 0.0, 0.0])
    log_pi = torch.tensor([2.0, -1.9, 1.0, 1.2], requires_grad=True)  # means 0.05 and 1.1
    tokens = Tokens(log_pi, log_mu, log_mu, torch.ones(4), torch.tensor([0, 0, 1, 1]), 2)
    by_turn = LOSSES["mis"](tokens, MisLoss(mis_level="turn"))
    assert by_turn.kept.tolist() == [True, True, False, False]
    assert LOSSES["mis"](tokens, MisLoss()).kept.tolist() == [False] * 4


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_correction_is_the_policy_gradient(name):
    log_pi = torch.tensor([-0.1, -2.0, -5.0], requires_grad=True)
    advantage = (
        torch.tensor([1.0, 1.0, 1.0]) if name == "gspo" else torch.tensor([1.0, -1.0, 0.5])
    )  # a turn has one advantage
    loss, clipped, kept = LOSSES[name](on_policy(log_pi, advantage), SETTINGS[name])
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    torch.testing.assert_close(gradient, -advantage)
    assert not clipped.any() and kept.all()


@pytest.mark.parametrize("name", LOSSES)
def test_absurd_ratios_stay_finite(name):
    log_pi = torch.tensor([-0.001, -300.0], requires_grad=True)
    log_mu = torch.tensor([-300.0, -0.001])
    tokens = Tokens(log_pi, log_mu, log_mu, torch.tensor([-1.0, 1.0]), torch.tensor([0, 1]), 2)
    loss = LOSSES[name](tokens, SETTINGS[name]).loss
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_divergence_of_a_policy_from_itself_is_nothing():
    log_p = np.array([-0.5, -1.0, -3.0], dtype=np.float32)
    measures = divergence(log_p, log_p, np.array([0, 0, 1]))
    assert measures["ratio_p50"] == measures["effective_sample_size"] == 1.0
    assert measures["kl"] == measures["kl_k1"] == measures["mismatch_age0"] == 0.0


@given(st.lists(st.floats(-1e4, 0), min_size=2, max_size=8), st.integers(0, 1000))
def test_divergence_of_policies_that_are_all_but_certain_is_made_of_numbers(log_probs, seed):
    log_pi = np.array(log_probs, dtype=np.float32)
    log_mu = np.random.default_rng(seed).permutation(log_pi)
    measures = divergence(log_pi, log_mu, np.arange(len(log_pi)) % 2)
    assert all(math.isfinite(value) for value in measures.values())
    assert 1 / len(log_pi) - 1e-9 <= measures["effective_sample_size"] <= 1 + 1e-9


@pytest.mark.parametrize("sign", [1, -1])
def test_a_policy_that_is_far_off_is_a_sign_of_a_collapse(sign):
    """Whatever overflows or vanishes on the way: a measure that is no number is no sign."""
    log_r = np.array([0.0] + [-1000.0] * 9, dtype=np.float32) + sign * 2000
    measures = divergence(log_r, np.zeros(10, dtype=np.float32), np.zeros(10, dtype=int))
    assert measures["effective_sample_size"] == pytest.approx(
        0.1
    ) and "few samples" in collapse_signs([measures], 0.3)


def test_divergence_keeps_numerics_and_staleness_apart():
    log_mu = np.zeros(4, dtype=np.float32)
    log_pi = np.log(np.array([1.0, 1.0, 2.0, 2.0], dtype=np.float32))
    measures = divergence(log_pi, log_mu, np.array([0, 0, 1, 3]))
    assert measures["ratio_age0_p99"] == pytest.approx(1.0) and measures[
        "ratio_old_p99"
    ] == pytest.approx(2.0)
    assert measures["kl_age0"] == pytest.approx(0.0) and measures["kl_old"] == pytest.approx(
        1 - math.log(2)
    )


def test_token_ages_count_every_token():
    assert token_ages(np.array([0, 0, 1, 3])) == {
        "token_age_mean": 1.0,
        "token_age_max": 3.0,
        "token_age0_share": 0.5,
    }
    assert token_ages(np.array([], dtype=int)) == {}


def test_divergence_over_one_age_leaves_the_other_out():
    measures = divergence(np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, int))
    assert (
        "ratio_age0_p99" not in measures
        and "mismatch_age0" not in measures
        and "ratio_old_p99" in measures
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_effective_sample_size_is_a_share(weights):
    share = effective_sample_size(np.array(weights))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9


logits = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(logits, logits, logits)
def test_reference_term_averages_to_the_divergence_and_its_gradient(theta, reference, behaviour):
    """The reference term's mean over tokens of any policy is the divergence, and its gradient."""
    theta, reference, behaviour = (
        torch.tensor(values, dtype=torch.float64) for values in (theta, reference, behaviour)
    )
    log_reference = reference.log_softmax(0)
    log_mu = behaviour.log_softmax(0)
    mean = theta.clone().requires_grad_()
    divergence_ = theta.clone().requires_grad_()
    found = (log_mu.exp() * reference_kl(mean.log_softmax(0), log_mu, log_reference)).sum()
    log_pi = divergence_.log_softmax(0)
    expected = (log_pi.exp() * (log_pi - log_reference)).sum()
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mean.grad, divergence_.grad)


def test_a_token_that_the_policy_has_given_up_is_pulled_back_to_the_reference():
    log_pi = torch.tensor([-60.0], requires_grad=True)
    reference_kl(log_pi, torch.tensor([-60.0]), torch.tensor([-1.0])).backward()
    assert log_pi.grad.item() == -20.0
