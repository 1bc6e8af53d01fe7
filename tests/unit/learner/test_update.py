"""The update: what it optimises, and what must not change it."""

import copy

import msgspec
import numpy as np
import pytest
import torch

from config import GaeAlgorithm, MisLoss
from learner.data.batching import collate
from learner.data.samples import TrainingSample, build_samples
from learner.losses import LOSSES
from learner.model import qwen3
from learner.model.policy import final_hidden, load_policy, log_probs
from learner.update import Updater, learning_rate_at, training_fraction
from learner.warm_start.tiny import build_random_model, build_tiny, train_tokenizer
from tests.fixtures.learner import TURNS, make_loss, random_conversation, random_group, small_config

CONFIG = small_config()
VOCABULARY = 300

with_any_loss = pytest.mark.parametrize(
    "settings",
    [
        *({"loss": make_loss(name)} for name in LOSSES),
        {"loss_reduction": "turn"},
        {"loss_reduction": "constant"},
        {"kl_coef": 0.5},
        {"entropy_coef": 0.1},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
"""For tests of what holds for each loss, and for each part that is added to it."""


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return build_random_model(CONFIG.model.tiny, train_tokenizer(CONFIG.model.tiny, TURNS), seed=0)


def updater(model, temperature=1.0, seed=0, **settings) -> Updater:
    return Updater(
        copy.deepcopy(model), msgspec.structs.replace(CONFIG.learner, **settings), temperature, seed
    )


def batch(seed=0, groups=3, version=1) -> list[TrainingSample]:
    rng = np.random.default_rng(seed)
    return build_samples(
        [random_group(rng, VOCABULARY, g, versions=(0, 1)) for g in range(groups)],
        version,
        CONFIG.learner,
    )


def change(before, after) -> float:
    """Largest difference of any weight."""
    return max(
        float((a - b).detach().abs().max())
        for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )


def replaced(sample: TrainingSample, **fields) -> TrainingSample:
    values = {
        name: getattr(sample, name)
        for name in ("prompt", "response", "mask", "log_mu", "age", "advantage")
    }
    return TrainingSample(**values | fields)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_whole_model(model, temperature):
    samples = batch()[:5]
    micro = collate([[one] for one in samples])
    log_pi, entropy = log_probs(model, micro, temperature)
    expected = []
    expected_entropy = []
    for sample in samples:  # one by one, without padding, all logits
        ids = torch.from_numpy(np.concatenate([sample.prompt, sample.response]).astype(np.int64))
        log_p = torch.log_softmax(model(ids[None]).logits[0].double() / temperature, -1)
        at = len(sample.prompt) + np.flatnonzero(sample.mask)
        expected.append(log_p[at - 1, ids[at]])
        expected_entropy.append(-(log_p[at - 1].exp() * log_p[at - 1]).sum(-1))
    torch.testing.assert_close(log_pi.double(), torch.cat(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), torch.cat(expected_entropy), rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad


@pytest.mark.slow
@with_any_loss
def test_micro_batch_size_does_not_change_the_gradient(model, settings):
    """The gradient does not depend on the size of micro-batches.

    It is the gradient, since Adam divides by its size: rounding in a tiny one may turn a step
    around.
    """
    found = []
    for budget in (64, 200, 100_000):
        u = updater(model, microbatch_tokens=budget, minibatches=1, **settings)
        found.append(gradients_of(u, batch()))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-6)


def conversations(seed=0) -> list[TrainingSample]:
    rng = np.random.default_rng(seed)
    return [turn for _ in range(4) for turn in random_conversation(rng, VOCABULARY)]


@with_any_loss
def test_merged_turns_have_the_gradient_of_turns_by_themselves(model, settings):
    """A conversation in one row has the gradient and the figures of a row a turn.

    Backwards, no prompt goes on where the turn before it ended, so that nothing is merged.
    """
    merged = updater(model, minibatches=1, **settings)
    alone = updater(model, minibatches=1, **settings)
    turns = conversations()
    expected = gradients_of(alone, alone.annotate(turns[::-1]))
    for name, gradient in gradients_of(merged, merged.annotate(turns)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_update_of_merged_turns_has_the_figures_of_turns_by_themselves(model):
    turns = conversations()
    merged = updater(model, minibatches=1).update(turns)
    alone = updater(model, minibatches=1).update(turns[::-1])
    assert merged.pop("turns_per_row") == 3
    assert alone.pop("turns_per_row") == 1
    for name in ("padding_share",):  # of other rows
        del merged[name], alone[name]
    assert merged == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_merged_turns_have_the_values_and_old_log_probs_of_turns_alone(model, estimator):
    settings: dict = {"algorithm": GaeAlgorithm(), "loss": make_loss("decoupled")}
    if estimator == "vtrace":
        settings["loss"] = make_loss("vtrace")
    u = updater(model, **settings)
    turns = conversations()
    for found, expected in zip(u.annotate(turns), u.annotate(turns[::-1])[::-1], strict=True):
        np.testing.assert_allclose(found.log_prox, expected.log_prox, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
        assert found.prompt is expected.prompt


@pytest.mark.slow
@pytest.mark.parametrize("own_forward", [True, False])
def test_layers_without_kept_activations_have_the_same_gradient(tmp_path, own_forward, monkeypatch):
    if not own_forward:
        monkeypatch.setattr(qwen3, "applies_to", lambda _: False)
    build_tiny(tmp_path / "policy", CONFIG.model.tiny, TURNS, seed=0)
    models = [load_policy(tmp_path / "policy", gradient_checkpointing=on) for on in (False, True)]
    first, second = (gradients_of(updater(m, minibatches=1), batch()) for m in models)
    for parameter, gradient in first.items():
        torch.testing.assert_close(second[parameter], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("own_forward", [True, False])
def test_in_bfloat16_only_the_layers_products_are(model, own_forward, monkeypatch):
    """Weights, their gradients and what the head sees stay float32.

    Log-probs move by bfloat16's rounding, and no more.
    """
    if not own_forward:
        monkeypatch.setattr(qwen3, "applies_to", lambda _: False)
    micro = collate([[one] for one in batch()])
    u = updater(model, precision="bfloat16")
    with torch.no_grad():
        seen = final_hidden(u.model, micro.tokens, micro.rows, micro.columns - 1, "bfloat16")
        exact, _ = log_probs(model, micro, 1.0)
        rounded, _ = log_probs(u.model, micro, 1.0, precision="bfloat16")
    assert seen.dtype == rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1
    gradients = gradients_of(u, batch())
    assert (
        {gradient.dtype for gradient in gradients.values()}
        == {p.dtype for p in u.model.parameters()}
        == {torch.float32}
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_turns_does_not_change_the_gradient(model, name):
    samples = batch()
    first, second = (
        gradients_of(updater(model, minibatches=1, loss=make_loss(name)), order)
        for order in (samples, samples[::-1])
    )
    for parameter, gradient in first.items():
        torch.testing.assert_close(second[parameter], gradient, rtol=1e-3, atol=1e-6)


def gradients_of(u: Updater, samples: list[TrainingSample]) -> dict[str, torch.Tensor]:
    """Return the gradients of the last optimizer step, after clipping."""
    gradients = {}
    u.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in u.model.named_parameters()})
    )
    u.update(samples)
    return gradients


OTHER = 1.5
"""Times the weights of the reference policy."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_reduction": "turn"},
        {"loss_reduction": "constant"},
        {"loss": MisLoss(mis_low=0.9, mis_high=1.1)},
        {"entropy_coef": 0.3},
        {"kl_coef": 0.3},
        {"loss": MisLoss(mis_low=0.9, mis_high=1.1), "loss_reduction": "turn"},
        {"loss": MisLoss(mis_low=0.9, mis_high=1.1), "kl_coef": 0.3, "entropy_coef": 0.3},
        {"kl_coef": 0.3, "loss_reduction": "turn"},
    ],
    ids=lambda settings: "-".join(settings) or "token",
)
def test_gradient_is_that_of_the_formula(model, settings):
    """One mini-batch with TIS or MIS, against the formula written out over unpadded samples."""
    samples = batch()
    u = updater(model, minibatches=1, gradient_clip=1e9, learning_rate=0.0, **settings)
    s = msgspec.structs.replace(CONFIG.learner, **settings)
    if u.reference is not None:
        with torch.no_grad():
            u.reference.lm_head.weight.mul_(OTHER)
    reference = copy.deepcopy(u.reference)
    gradients = gradients_of(u, samples)
    twin = copy.deepcopy(model)
    total = 0.0
    regularizers = 0.0
    kept = 0
    masked_turns = 0
    for sample in samples:
        of_turn = []
        ids = torch.from_numpy(np.concatenate([sample.prompt, sample.response]).astype(np.int64))
        log_p = torch.log_softmax(twin(ids[None]).logits[0], -1)
        for t in np.flatnonzero(sample.mask):
            at = len(sample.prompt) + t
            log_pi = log_p[at - 1, ids[at]]
            ratio = float((log_pi.detach() - float(sample.log_mu[t])).exp())
            regularizers = (
                regularizers + s.entropy_coef * (log_p[at - 1].exp() * log_p[at - 1]).sum()
            )
            if reference is not None:
                with torch.no_grad():
                    log_reference = torch.log_softmax(reference(ids[None]).logits[0], -1)[
                        at - 1, ids[at]
                    ]
                regularizers = (
                    regularizers + s.kl_coef * ratio * (log_pi.detach() - log_reference) * log_pi
                )
            if s.loss.type == "mis" and not s.loss.mis_low <= ratio <= s.loss.mis_high:
                continue
            of_turn.append(
                -(ratio if s.loss.type == "mis" else min(ratio, s.loss.tis_cap))
                * sample.advantage
                * log_pi
            )
        kept += len(of_turn)
        total = total + sum(of_turn) / (max(1, len(of_turn)) if s.loss_reduction == "turn" else 1)
        total = total + regularizers / (sample.trained_tokens if s.loss_reduction == "turn" else 1)
        regularizers = 0.0
        masked_turns += sample.needs_compute and not of_turn
    assert 0 < kept < sum(sample.trained_tokens for sample in samples) or s.loss.type != "mis"
    turns = sum(sample.trained_tokens > 0 for sample in samples) - (
        masked_turns if s.loss_reduction == "turn" else 0
    )
    (total / {"token": kept, "turn": turns, "constant": 64 * turns}[s.loss_reduction]).backward()
    for name, parameter in twin.named_parameters():
        rounding = 1e-6 + 1e-4 * float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=rounding)


def test_a_policy_that_is_its_own_reference_is_not_held_back(model):
    samples = batch()
    free = updater(model, minibatches=1, learning_rate=1e-3)
    held = updater(model, minibatches=1, learning_rate=1e-3, kl_coef=1.0)
    free.update(samples)
    assert held.update(samples)["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert change(free.model, held.model) < 2e-5
    assert held.update(samples)["kl_reference"] > 0
    held.refresh_reference()
    assert held.update(samples)["kl_reference"] == pytest.approx(0, abs=1e-6)


def test_the_proximal_policy_is_that_of_the_start_of_the_update(model):
    """Though the policy moves with the first mini-batch.

    With one alone, the decoupled correction is TIS.
    """
    ends = [
        updater(model, minibatches=1, learning_rate=1e-3, loss=make_loss(name))
        for name in ("decoupled", "tis")
    ]
    for u in ends:
        u.update(u.annotate(batch()))
    assert change(ends[0].model, ends[1].model) < 2e-5
    moved = ends[0]
    for sample in moved.annotate(batch()):
        log_pi, _ = log_probs(moved.model, collate([[sample]]), 1.0)
        np.testing.assert_allclose(
            sample.log_prox[sample.mask], log_pi.detach().numpy(), rtol=1e-4, atol=1e-5
        )


def test_masked_tokens_change_nothing(model):
    """Forced tokens have no loss of their own: their log-probs may be anything."""
    samples = batch()
    other = [
        replaced(
            s,
            log_mu=np.where(s.mask, s.log_mu, 123.0).astype(np.float32),
            age=np.where(s.mask, s.age, 9),
        )
        for s in samples
    ]
    first = updater(model)
    second = updater(model)
    assert first.update(samples)["loss"] == second.update(other)["loss"]
    assert change(first.model, second.model) == 0


def test_samples_without_advantage_count_in_the_mean_but_are_not_computed(model):
    samples = batch()
    silent = [replaced(s, advantage=0.0) for s in samples]
    one = updater(model, minibatches=1)
    two = updater(model, minibatches=1)
    alone = one.update(samples)
    diluted = two.update(samples + silent)
    assert diluted["loss"] == pytest.approx(alone["loss"] / 2, rel=1e-5)
    assert diluted["trained_tokens"] == 2 * alone["trained_tokens"]
    assert diluted["computed_turns_share"] == pytest.approx(alone["computed_turns_share"] / 2)


def test_same_seed_same_update_other_seed_other_minibatches(model):
    ends = {}
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        u = updater(model, seed=seed, learning_rate=1e-3)
        u.update(batch())
        ends[name] = u.model
    assert change(ends["a"], ends["again"]) == 0 and change(ends["a"], ends["b"]) > 0


def test_gradient_that_is_not_finite_leaves_the_weights(model):
    samples = batch()
    poisoned = [replaced(s, advantage=float("nan")) if i == 0 else s for i, s in enumerate(samples)]
    u = updater(model, minibatches=1, learning_rate=1e-3)
    metrics = u.update(poisoned)
    assert change(model, u.model) == 0
    assert metrics["skipped_steps"] == 1 and metrics["optimizer_steps"] == 0
    assert u.update(samples)["optimizer_steps"] == 1 and change(model, u.model) > 0


def test_batch_without_a_trainable_token_is_an_update_of_nothing(model):
    u = updater(model)
    metrics = u.update([replaced(s, mask=np.zeros(len(s.mask), bool)) for s in batch()])
    assert metrics["trained_tokens"] == 0 and metrics["optimizer_steps"] == 0
    assert change(model, u.model) == 0


def test_learning_rate_zero_moves_nothing_and_divergence_is_of_the_data(model):
    """Invariant 7: samples drawn by this very policy have a ratio of 1, before and after."""
    samples = []
    for s in batch():
        micro = collate([[replaced(s, mask=np.ones(len(s.mask), bool))]])
        log_pi, _ = log_probs(model, micro, 1.0)
        samples.append(
            replaced(
                s,
                log_mu=log_pi.detach().numpy(),
                mask=np.ones(len(s.mask), bool),
                age=np.zeros(len(s.age), int),
            )
        )
    u = updater(model, learning_rate=0.0)
    for _ in range(2):
        metrics = u.update(samples)
        assert metrics["mismatch_age0"] < 1e-5 and metrics["ratio_max"] == pytest.approx(
            1, abs=1e-4
        )
    assert change(model, u.model) == 0


def test_update_raises_the_likelihood_of_what_was_good(model):
    samples = [replaced(s, advantage=1.0 if i % 2 else -1.0) for i, s in enumerate(batch())]
    good = collate([[one] for one in samples[1::2]])
    bad = collate([[one] for one in samples[::2]])
    u = updater(model, learning_rate=1e-3)
    before = margin(u.model, good, bad)
    u.update(samples)
    assert margin(u.model, good, bad) > before


@torch.no_grad()
def margin(model, good, bad) -> float:
    return float(log_probs(model, good, 1.0)[0].mean() - log_probs(model, bad, 1.0)[0].mean())


def test_step_size_falls_linearly_over_the_last_part_of_the_run():
    settings = msgspec.structs.replace(CONFIG.learner, learning_rate=8.0, lr_decay_fraction=0.25)
    assert [learning_rate_at(settings, progress) for progress in (0, 0.5, 0.75, 0.875, 1)] == [
        8,
        8,
        8,
        4,
        0,
    ]


def test_step_size_without_decay_is_constant():
    settings = msgspec.structs.replace(CONFIG.learner, learning_rate=8.0, lr_decay_fraction=0.0)
    assert [learning_rate_at(settings, progress) for progress in (0, 0.5, 1)] == [8, 8, 8]


def test_training_is_over_when_its_updates_or_its_time_are():
    assert training_fraction((2, 8), (10, 100)) == 0.25
    assert training_fraction((2, 8), (60, 100)) == 0.6
    assert training_fraction((0, 8), (0, -1)) == 1
