"""Settings of the learner that only some others give a use.

Without them it would be ignored without a word: a value of one's own is refused there. What belongs
to one algorithm or one loss alone is a setting of that type (config/algorithm.py, config/loss.py).
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from config.algorithm import GaeAlgorithm, GigpoAlgorithm
from config.learner import LearnerSection
from config.loss import VtraceLoss
from config.section import ConfigError

COMPARES_WITHIN_GROUP = ("gigpo", "grpo", "rloo", "reinforce++-baseline")
"""Algorithms to which a group of equal returns teaches nothing."""


class Use(NamedTuple):
    """The user of a setting: in words, and as a test of the settings."""

    by: str
    holds: Callable[[LearnerSection], bool]


def _has_steps(learner: LearnerSection) -> bool:
    algorithm = learner.algorithm
    return not isinstance(algorithm, GigpoAlgorithm) or algorithm.step_weight > 0


_STEPS = Use("a learner.algorithm.step_weight above 0", _has_steps)

USES: dict[str, Use] = {
    "filter_groups": Use(
        f"learner.algorithm {' or '.join(COMPARES_WITHIN_GROUP)}",
        lambda learner: learner.algorithm.type in COMPARES_WITHIN_GROUP,
    ),
    "algorithm.anchor_similarity": _STEPS,
    "algorithm.discount": _STEPS,
    "algorithm.gae_lambda": Use(
        "another learner.loss than vtrace",
        lambda learner: not isinstance(learner.loss, VtraceLoss),
    ),
    "resampling_cap": Use(
        "learner.resampling weight", lambda learner: learner.resampling == "weight"
    ),
    "truncated_penalty": Use(
        "learner.truncated penalize", lambda learner: learner.truncated == "penalize"
    ),
    "reference_every": Use("learner.kl_coef above 0", lambda learner: learner.kl_coef > 0),
    "lora_alpha": Use("learner.lora_rank above 0", lambda learner: learner.lora_rank > 0),
}
"""Setting of the learner -> who uses it. Settings that are not here are used in any case."""


def check_used(learner: LearnerSection) -> None:
    """Raise ConfigError for a setting of one's own that the others leave without a use."""
    defaults = LearnerSection(algorithm=type(learner.algorithm)(), loss=type(learner.loss)())
    for name, use in USES.items():
        get_value = attrgetter(name)
        try:
            default = get_value(defaults)
        except AttributeError:  # another algorithm's
            continue
        if get_value(learner) == default or use.holds(learner):
            continue
        raise ConfigError(
            f"learner.{name}: it is used with {use.by} alone, and would be ignored with "
            f"learner.algorithm {learner.algorithm.type} and learner.loss {learner.loss.type}; "
            f"choose such, or leave it at {str(default).lower()}"
        )
    if isinstance(learner.loss, VtraceLoss) and not isinstance(learner.algorithm, GaeAlgorithm):
        raise ConfigError(
            "learner.loss: vtrace corrects values, and learner.algorithm "
            f"{learner.algorithm.type} has none; set it to gae"
        )
