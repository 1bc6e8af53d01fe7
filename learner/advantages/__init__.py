"""Advantage estimators, by the name that `learner.algorithm` gives: one file each.

Each is a function (groups of a batch, settings) -> a list per group of float64 [K] per episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from config import LearnerSection
from learner.advantages.gae import gae
from learner.advantages.gigpo import gigpo
from learner.advantages.grpo import grpo
from learner.advantages.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from learner.advantages.returns import EpisodeReturns, GroupReturns
from learner.advantages.rloo import rloo

Estimator = Callable[[Sequence[GroupReturns], LearnerSection], list[list[np.ndarray]]]
GroupEstimator = Callable[[GroupReturns, LearnerSection], list[np.ndarray]]


def _by_group(estimate_group: GroupEstimator) -> Estimator:
    """Make an estimator of one that compares within a group."""

    def estimate(
        groups: Sequence[GroupReturns], settings: LearnerSection
    ) -> list[list[np.ndarray]]:
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

__all__ = ["ESTIMATORS", "NEEDS_CRITIC", "EpisodeReturns", "Estimator", "GroupReturns"]
