"""Advantage estimators, by the name that `learner.algorithm` gives. Each: (group, settings) -> per episode, float64 [K]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from config import LearnerSection
from learner.advantages.gigpo import gigpo
from learner.advantages.grpo import grpo
from learner.advantages.returns import EpisodeReturns, GroupReturns

Estimator = Callable[[GroupReturns, LearnerSection], list[np.ndarray]]

ESTIMATORS: dict[str, Estimator] = {"grpo": grpo, "gigpo": gigpo}

__all__ = ["ESTIMATORS", "EpisodeReturns", "Estimator", "GroupReturns"]
