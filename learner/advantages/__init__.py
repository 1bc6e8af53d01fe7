"""Advantage estimators, by the name that `learner.algorithm.type` gives: one file each.

Each is a function (groups of a batch, its own settings) -> a list per group of float64 [K] per
episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from config import AnyAlgorithm, GaeAlgorithm, LearnerSection, VtraceLoss
from learner.advantages.gae import estimate_turns, gae
from learner.advantages.gigpo import gigpo
from learner.advantages.grpo import grpo
from learner.advantages.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from learner.advantages.returns import EpisodeReturns, GroupReturns
from learner.advantages.rloo import rloo

Estimator = Callable[[Sequence[GroupReturns], Any], list[list[np.ndarray]]]
GroupEstimator = Callable[[GroupReturns, Any], list[np.ndarray]]


def _by_group(estimate_group: GroupEstimator) -> Estimator:
    """Make an estimator of one that compares within a group."""

    def estimate(groups: Sequence[GroupReturns], settings: AnyAlgorithm) -> list[list[np.ndarray]]:
        return [estimate_group(group, settings) for group in groups]

    return estimate


ESTIMATORS: dict[str, Estimator] = {
    "grpo": _by_group(grpo),
    "gigpo": _by_group(gigpo),
    "rloo": _by_group(rloo),
    "reinforce++": reinforce_pp,
    "reinforce++-baseline": reinforce_pp_baseline,
    "gae": gae,
}

NEEDS_CRITIC = frozenset({"gae"})
"""Estimators that need a value head, which costs a further forward pass over the prompts."""


def estimate_advantages(
    groups: Sequence[GroupReturns], learner: LearnerSection
) -> list[list[np.ndarray]]:
    """Return the advantages of a batch by the learner's algorithm, which V-trace may correct."""
    if isinstance(learner.loss, VtraceLoss):
        return gae(groups, _with_value_head(learner.algorithm), learner.loss)
    return ESTIMATORS[learner.algorithm.type](groups, learner.algorithm)


def _with_value_head(algorithm: AnyAlgorithm) -> GaeAlgorithm:
    """Return the algorithm as the one that has a value head; ValueError for another one."""
    if not isinstance(algorithm, GaeAlgorithm):
        raise ValueError(f"learner.algorithm.type: {algorithm.type} has no value head")
    return algorithm


def estimate_values(episode: EpisodeReturns, learner: LearnerSection) -> np.ndarray:
    """Return what the value head's values of an episode's turns should have been."""
    correction = learner.loss if isinstance(learner.loss, VtraceLoss) else None
    return estimate_turns(episode, _with_value_head(learner.algorithm), correction).targets


__all__ = [
    "ESTIMATORS",
    "NEEDS_CRITIC",
    "EpisodeReturns",
    "Estimator",
    "GroupReturns",
    "estimate_advantages",
    "estimate_values",
]
