"""Settings of the learner that only some algorithms or corrections use.

Another one would ignore them without a word: a value of one's own is refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from config import ConfigError, LearnerSection


class Use(NamedTuple):
    """Who uses a setting: in words, and whether these settings do."""

    by: str
    holds: Callable[[LearnerSection], bool]


def _one_of(setting: str, *values: str) -> Use:
    return Use(
        f"learner.{setting} {' or '.join(values)}",
        lambda learner: getattr(learner, setting) in values,
    )


_CLIPPING = _one_of("loss", "ppo", "decoupled", "gspo", "cispo")
_MASKING = _one_of("loss", "mis")
_TRUNCATING = _one_of("loss", "vtrace")
_STEPS = Use(
    "learner.algorithm gigpo with a learner.step_weight",
    lambda learner: learner.algorithm == "gigpo" and learner.step_weight > 0,
)

USES: dict[str, Use] = {
    "filter_groups": _one_of("algorithm", "gigpo", "grpo", "rloo", "reinforce++-baseline"),
    "baseline_weighting": _one_of(
        "algorithm", "gigpo", "grpo", "rloo", "reinforce++", "reinforce++-baseline"
    ),
    "step_weight": _one_of("algorithm", "gigpo"),
    "anchor_similarity": _STEPS,
    "discount": Use(
        f"{_STEPS.by}, or gae", lambda learner: learner.algorithm == "gae" or _STEPS.holds(learner)
    ),
    "gae_lambda": Use(
        "learner.algorithm gae without learner.loss vtrace",
        lambda learner: learner.algorithm == "gae" and learner.loss != "vtrace",
    ),
    "value_learning_rate": _one_of("algorithm", "gae"),
    "clip_low": _CLIPPING,
    "clip_high": _CLIPPING,
    "tis_cap": Use(
        "learner.loss tis or decoupled, or learner.resampling weight",
        lambda learner: learner.loss in ("tis", "decoupled") or learner.resampling == "weight",
    ),
    "mis_low": _MASKING,
    "mis_high": _MASKING,
    "mis_level": _MASKING,
    "vtrace_rho": _TRUNCATING,
    "vtrace_c": _TRUNCATING,
    "reference_every": Use("learner.kl_coef above 0", lambda learner: learner.kl_coef > 0),
    "lora_alpha": Use("learner.lora_rank above 0", lambda learner: learner.lora_rank > 0),
}
"""Setting of the learner -> who uses it. Settings that are not here are used in any case."""


def check_used(learner: LearnerSection) -> None:
    """Raises ConfigError for a setting that is not at its default, and that the algorithm and the
    correction chosen ignore."""
    default = LearnerSection()
    for name, use in USES.items():
        usual = getattr(default, name)
        if getattr(learner, name) == usual or use.holds(learner):
            continue
        raise ConfigError(
            f"learner.{name}: it is used with {use.by} alone, and would be ignored with "
            f"learner.algorithm {learner.algorithm} and "
            f"learner.loss {learner.loss}; choose such, or leave it at "
            f"{str(usual).lower()}"
        )
    if learner.algorithm.startswith("reinforce++") and not learner.normalize_advantages:
        raise ConfigError(
            f"learner.normalize_advantages: learner.algorithm {learner.algorithm} is the "
            "division by the batch's deviation; set it to true, or take grpo"
        )
    if learner.algorithm == "rloo" and learner.normalize_advantages:
        raise ConfigError(
            "learner.normalize_advantages: learner.algorithm rloo never divides by a "
            "deviation; set it to false, or take grpo"
        )
