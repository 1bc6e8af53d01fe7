"""Advantage estimators, by the name that `learner.algorithm` gives: one file each, (groups of a
batch, settings) -> a list per group of float64 [K] per episode."""

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


def _by_group(one: Callable[[GroupReturns, LearnerSection], list[np.ndarray]]) -> Estimator:
    """Of an estimator that compares within a group."""
    return lambda groups, settings: [one(group, settings) for group in groups]


ESTIMATORS: dict[str, Estimator] = {
    "grpo": _by_group(grpo),
    "gigpo": _by_group(gigpo),
    "rloo": _by_group(rloo),
    "reinforce++": reinforce_pp,
    "reinforce++-baseline": reinforce_pp_baseline,
    "gae": gae,
}

NEEDS_CRITIC = frozenset({"gae"})
"""Those that need a value head: a further forward pass over the prompts."""

__all__ = ["ESTIMATORS", "NEEDS_CRITIC", "EpisodeReturns", "Estimator", "GroupReturns"]
