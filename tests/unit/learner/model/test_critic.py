"""The value head: what it sees, what it learns, and that it leaves the policy alone."""

import copy

import msgspec
import numpy as np
import pytest
import torch

from learner.data.samples import build_samples
from learner.model.critic import Critic
from learner.model.sharding import Policy
from learner.ranks import Ranks
from learner.update import Updater
from learner.warm_start.tiny import build_random_model, train_tokenizer
from tests.fixtures.learner import TURNS, random_group, small_config

CONFIG = small_config(learner__algorithm="gae")
VTRACE = small_config(learner__algorithm="gae", learner__loss="vtrace")
VOCABULARY = 300


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return build_random_model(CONFIG.model.tiny, train_tokenizer(CONFIG.model.tiny, TURNS), seed=0)


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)
    return [random_group(rng, VOCABULARY, g, versions=(0, 1)) for g in range(3)]


def updater(model, config=CONFIG) -> Updater:
    return Updater(copy.deepcopy(model), config.learner, 1.0, seed=0)


def test_a_value_is_of_the_state_at_the_end_of_the_prompt(model, groups):
    critic = Critic(model.config.hidden_size, 1e-3)
    torch.nn.init.normal_(critic.head.weight)
    samples = build_samples(groups, 1, CONFIG.learner)
    for sample, judged in zip(
        samples, critic.annotate(Policy(model, Ranks()), samples, 64, Ranks()), strict=True
    ):
        assert (
            judged.prompt is sample.prompt
        )  # the order is that of the samples, though they are computed by length
        hidden = model.model(
            torch.from_numpy(sample.prompt.astype(np.int64))[None]
        ).last_hidden_state[0, -1]
        np.testing.assert_allclose(judged.features, hidden.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert judged.value == pytest.approx(critic.head(hidden).item(), rel=1e-4, abs=1e-5)


def test_what_is_judged_is_the_policy_before_the_update(model, groups):
    """The ratio of a turn is that of all its trained tokens.

    A slow reference computes them one turn at a time.
    """
    for sample in updater(model, VTRACE).annotate(build_samples(groups, 1, VTRACE.learner)):
        ids = torch.from_numpy(np.concatenate([sample.prompt, sample.response]).astype(np.int64))
        log_p = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        at = len(sample.prompt) + np.flatnonzero(sample.mask)
        expected = (
            (log_p[at - 1, ids[at]] - torch.from_numpy(sample.log_mu[sample.mask])).sum().item()
        )
        assert sample.log_ratio == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_values_come_to_explain_the_returns(model, groups):
    """Values come to explain the returns of a batch that is seen again and again.

    The policy stays as it is.
    """
    u = updater(model)
    found = []
    for _ in range(60):
        samples = build_samples(groups, 1, CONFIG.learner, annotate=u.annotate)
        found.append(u.critic.fit(samples))
    assert found[0]["value_loss"] > 4 * found[-1]["value_loss"]
    assert found[-1]["explained_variance"] > 0.8


def test_an_episode_that_was_cut_off_is_judged_by_what_was_to_come(model, groups):
    """An episode that was cut off is judged by the value of the last state that the head saw.

    That is followed from the trajectory to the targets.
    """
    u = updater(model)
    torch.nn.init.normal_(u.critic.head.weight)
    cut = [
        [msgspec.structs.replace(episode, truncated=True) for episode in group] for group in groups
    ]
    ended, cut_off = (
        build_samples(batch, 1, CONFIG.learner, annotate=u.annotate) for batch in (groups, cut)
    )
    last = np.cumsum([len(episode.turns) for group in groups for episode in group]) - 1
    for i in last:
        assert cut_off[i].target - ended[i].target == pytest.approx(
            CONFIG.learner.algorithm.discount * ended[i].value
        )


def test_learning_values_leaves_the_policy_alone(model, groups):
    u = updater(model)
    u.critic.fit(build_samples(groups, 1, CONFIG.learner, annotate=u.annotate))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), u.model.parameters(), strict=True)
    )


def test_the_update_says_how_well_values_were_known(model, groups):
    u = updater(model)
    metrics = u.update(build_samples(groups, 1, CONFIG.learner, annotate=u.annotate))
    assert metrics["value_loss"] > 0 and metrics["explained_variance"] == pytest.approx(
        0, abs=1e-6
    )  # they were all 0
