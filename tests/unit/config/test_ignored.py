"""No setting of the loss is ignored without a word.

For each algorithm and loss it changes something, or is refused.
"""

import msgspec
import numpy as np
import pytest
import torch

from config import Algorithm, ConfigError, GigpoAlgorithm, LearnerSection, Loss, PpoLoss
from config.ignored import COMPARES_WITHIN_GROUP, check_used
from learner.advantages import (
    ESTIMATORS,
    NEEDS_CRITIC,
    EpisodeReturns,
    GroupReturns,
    estimate_advantages,
    estimate_values,
)
from learner.losses import LOSSES, Tokens
from tests.fixtures.learner import make_algorithm, make_loss

OTHERS = {
    "normalize_advantages": False,
    "baseline_weighting": "episode",
    "discount": 0.5,
    "anchor_similarity": 0.5,
    "step_weight": 0.5,
    "gae_lambda": 0.5,
    "vtrace_rho": 0.5,
    "vtrace_c": 0.5,
    "clip_low": 0.1,
    "clip_high": 0.4,
    "tis_cap": 1.2,
    "mis_low": 0.1,
    "mis_high": 9.0,
    "mis_level": "turn",
    "invalid_penalty": 0.5,
}
"""Setting of an algorithm or a loss -> a value that is not its default."""

COMBINATIONS = [
    (name, other)
    for name in ESTIMATORS
    for other in LOSSES
    if other != "vtrace" or name in NEEDS_CRITIC
]


def episode(rewards: list[float], anchors: list[str], rng: np.random.Generator) -> EpisodeReturns:
    count = len(rewards)
    return EpisodeReturns(
        np.array(rewards),
        rng.random(count) < 0.5,
        anchors,
        rng.normal(size=count),
        rng.normal(size=count),
    )


def batch() -> list[GroupReturns]:
    rng = np.random.default_rng(0)
    first = [
        episode([0.0, 1.0], ["a b", "a c"], rng),
        episode([0.0, 0.0, 2.0], ["a b", "a c", "a d"], rng),
        episode([0.5], ["a b"], rng),
    ]
    second = [
        episode([3.0, 0.0], ["e", "f g"], rng),
        episode([0.0, 0.0, 0.0, 1.0], ["e", "f h", "e", "i"], rng),
    ]
    return [GroupReturns(first), GroupReturns(second)]


def outcome(learner: LearnerSection) -> list[np.ndarray]:
    """All that is computed with settings of the loss, of data that reach every bound."""
    groups = batch()
    computed = [
        advantages for group in estimate_advantages(groups, learner) for advantages in group
    ]
    if learner.algorithm.type in NEEDS_CRITIC:
        computed += [
            estimate_values(episode, learner) for group in groups for episode in group.episodes
        ]
    log_pi = torch.linspace(-4.0, -0.5, 40, dtype=torch.float64)
    log_r = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)
    tokens = Tokens(
        log_pi, log_pi - log_r, log_pi - log_r.flip(0) / 2, advantage, torch.arange(40) // 4, 10
    )
    losses = LOSSES[learner.loss.type](tokens, learner.loss)
    return computed + [values.numpy() for values in losses]


def refused(learner: LearnerSection) -> str:
    try:
        check_used(learner)
    except ConfigError as error:
        return str(error)
    return ""


def varied(learner: LearnerSection) -> dict[str, LearnerSection]:
    """Setting of the algorithm or the loss -> the settings with another value of it."""
    settings = {}
    for part, own in (("algorithm", learner.algorithm), ("loss", learner.loss)):
        for name in own.__struct_fields__:
            if name == "value_learning_rate":
                continue  # the value head's optimizer has it
            other = msgspec.structs.replace(own, **{name: OTHERS[name]})
            settings[f"{part}.{name}"] = msgspec.structs.replace(learner, **{part: other})
    return settings


@pytest.mark.parametrize(("algorithm", "loss"), COMBINATIONS)
def test_each_setting_of_the_loss_changes_what_is_computed_or_is_refused(algorithm: str, loss: str):
    learner = LearnerSection(algorithm=make_algorithm(algorithm), loss=make_loss(loss))
    before = outcome(learner)
    for name, settings in varied(learner).items():
        changed = any(
            not np.array_equal(a, b) for a, b in zip(before, outcome(settings), strict=True)
        )
        message = refused(settings)
        assert changed != bool(message), (name, message)
        assert not message or (f"learner.{name}" in message and algorithm in message)


@pytest.mark.parametrize("names", [ESTIMATORS, LOSSES])
def test_each_type_has_a_struct_of_settings(names: dict):
    make = make_algorithm if names is ESTIMATORS else make_loss
    base = Algorithm if names is ESTIMATORS else Loss
    for name in names:
        assert make(name).type == name and isinstance(make(name), base)


@pytest.mark.parametrize("statistics", ["turn", "episode"])
@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_groups_are_filtered_only_where_a_group_of_equal_returns_teaches_nothing(
    algorithm: str, statistics: str
):
    rng = np.random.default_rng(0)
    equal = GroupReturns([episode([7.0], ["x"], rng), episode([7.0], ["y"], rng)])
    settings = make_algorithm(algorithm, baseline_weighting=statistics, invalid_penalty=0.0)
    advantages = np.concatenate(ESTIMATORS[algorithm]([*batch(), equal], settings)[-1])
    is_compared = algorithm in COMPARES_WITHIN_GROUP
    assert np.allclose(advantages, 0.0, atol=1e-12) == is_compared
    filtered = LearnerSection(algorithm=settings, filter_groups=True)
    assert (refused(filtered) == "") == is_compared


@pytest.mark.parametrize(
    ("name", "value", "switch"),
    [
        ("resampling_cap", 3.0, {"resampling": "weight"}),
        ("truncated_penalty", 2.0, {"truncated": "penalize"}),
        ("lora_alpha", 8.0, {"lora_rank": 2}),
        ("reference_every", 3, {"kl_coef": 0.1}),
    ],
)
def test_a_setting_is_taken_with_the_one_that_it_is_for(name: str, value: float, switch: dict):
    alone = LearnerSection(loss=PpoLoss(), **{name: value})
    assert f"learner.{name}" in refused(alone) and f"learner.{next(iter(switch))}" in refused(alone)
    assert refused(msgspec.structs.replace(alone, **switch)) == ""


@pytest.mark.parametrize("name", ["discount", "anchor_similarity"])
def test_settings_of_the_step_advantage_are_refused_where_it_weighs_nothing(name: str):
    algorithm = GigpoAlgorithm(step_weight=0.0, **{name: 0.5})
    assert "learner.algorithm.step_weight" in refused(LearnerSection(algorithm=algorithm))
