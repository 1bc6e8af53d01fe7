"""No setting of the loss is ignored without a word: for each algorithm and correction it changes
something, or is refused."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from learner_fixtures import small_config

import learner
from config import ConfigError, LearnerSection
from config.ignored import USES, check_used
from learner.advantages import ESTIMATORS, NEEDS_CRITIC, EpisodeReturns, GroupReturns
from learner.advantages.gae import estimate_turns
from learner.losses import LOSSES, Tokens

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
"""Setting of advantages or corrections -> a value that is not its default."""

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


def outcome(settings: LearnerSection) -> list[np.ndarray]:
    """All that is computed with settings of the loss, of data that reach every bound."""
    groups = batch()
    found = [
        advantages
        for group in ESTIMATORS[settings.algorithm](groups, settings)
        for advantages in group
    ]
    if settings.algorithm in NEEDS_CRITIC:
        found += [
            estimate_turns(episode, settings).targets
            for group in groups
            for episode in group.episodes
        ]
    log_pi = torch.linspace(-4.0, -0.5, 40, dtype=torch.float64)
    log_r = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)
    tokens = Tokens(
        log_pi, log_pi - log_r, log_pi - log_r.flip(0) / 2, advantage, torch.arange(40) // 4, 10
    )
    return found + [values.numpy() for values in LOSSES[settings.loss](tokens, settings)]


def refused(settings: LearnerSection) -> str:
    try:
        check_used(settings)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("algorithm", "correction"), COMBINATIONS)
def test_each_setting_of_the_loss_changes_what_is_computed_or_is_refused(
    algorithm: str, correction: str
):
    usual = small_config(learner__algorithm=algorithm, learner__loss=correction).learner
    before = outcome(usual)
    for name, value in OTHERS.items():
        value = not usual.normalize_advantages if name == "normalize_advantages" else value
        settings = msgspec.structs.replace(usual, **{name: value})
        changed = any(
            not np.array_equal(a, b) for a, b in zip(before, outcome(settings), strict=True)
        )
        message = refused(settings)
        assert changed != bool(message), (name, message)
        assert not message or (f"learner.{name}" in message and algorithm in message)


def test_each_setting_that_advantages_and_corrections_read_is_in_this_test():
    sources = [
        path
        for part in ("advantages", "losses")
        for path in (Path(learner.__file__).parent / part).glob("*.py")
    ]
    read = {name for path in sources for name in re.findall(r"\bsettings\.(\w+)", path.read_text())}
    assert read - {"loss"} == set(OTHERS)
    assert set(USES) - set(OTHERS) == {
        "filter_groups",
        "value_learning_rate",
        "reference_every",
        "lora_alpha",
    }


@pytest.mark.parametrize("statistics", ["turn", "episode"])
@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_groups_are_filtered_only_where_a_group_of_equal_returns_teaches_nothing(
    algorithm: str, statistics: str
):
    rng = np.random.default_rng(0)
    equal = GroupReturns([episode([7.0], ["x"], rng), episode([7.0], ["y"], rng)])
    settings = LearnerSection(
        algorithm=algorithm, baseline_weighting=statistics, invalid_penalty=0.0
    )
    advantages = np.concatenate(ESTIMATORS[algorithm]([*batch(), equal], settings)[-1])
    filtered = msgspec.structs.replace(
        settings,
        filter_groups=True,
        baseline_weighting="turn",
        normalize_advantages=algorithm != "rloo",
    )
    assert np.allclose(advantages, 0.0, atol=1e-12) == (refused(filtered) == "")


@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_the_value_heads_step_size_is_taken_where_there_is_a_value_head(algorithm: str):
    usual = small_config(learner__algorithm=algorithm).learner
    assert (refused(msgspec.structs.replace(usual, value_learning_rate=0.1)) == "") == (
        algorithm in NEEDS_CRITIC
    )


@pytest.mark.parametrize(
    ("name", "value", "switch"),
    [
        ("tis_cap", 3.0, {"resampling": "weight"}),
        ("lora_alpha", 8.0, {"lora_rank": 2}),
        ("reference_every", 3, {"kl_coef": 0.1}),
    ],
)
def test_a_setting_is_taken_with_the_one_that_it_is_for(name: str, value: float, switch: dict):
    alone = LearnerSection(loss="ppo", **{name: value})
    assert f"learner.{name}" in refused(alone) and f"learner.{next(iter(switch))}" in refused(alone)
    assert refused(msgspec.structs.replace(alone, **switch)) == ""


@pytest.mark.parametrize("name", ["discount", "anchor_similarity"])
def test_settings_of_the_step_advantage_are_refused_where_it_weighs_nothing(name: str):
    assert "learner.step_weight" in refused(LearnerSection(step_weight=0.0, **{name: 0.5}))
