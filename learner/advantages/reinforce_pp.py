"""REINFORCE++: returns are compared over the whole batch, not within a task.

Hu et al. 2025, arXiv 2501.03262. Without a baseline of its own, an easy task's failures are worth
more than a hard task's successes. With tasks of unequal difficulty the variant with a group's mean
as baseline (section 3.3) learns more from each batch. One deviation for all groups does not blow up
the groups whose returns hardly differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config import ReinforcePlusPlusAlgorithm, ReinforcePlusPlusBaselineAlgorithm
from learner.advantages.returns import (
    GroupReturns,
    broadcast_to_turns,
    standardize_returns,
    validity_penalties,
)


def reinforce_pp(
    groups: Sequence[GroupReturns], settings: ReinforcePlusPlusAlgorithm
) -> list[list[np.ndarray]]:
    """Return each episode's return less the batch's mean, over the batch's deviation."""
    return _standardize_over_batch(groups, [group.returns for group in groups], settings)


def reinforce_pp_baseline(
    groups: Sequence[GroupReturns], settings: ReinforcePlusPlusBaselineAlgorithm
) -> list[list[np.ndarray]]:
    """Return the same, of returns less their group's mean.

    A return counts as often in the group's mean as in the batch's.
    """
    centered = [
        standardize_returns(
            group.returns, group.turn_counts, settings.baseline_weighting, normalise=False
        )
        for group in groups
    ]
    return _standardize_over_batch(groups, centered, settings)


def _standardize_over_batch(
    groups: Sequence[GroupReturns],
    values: Sequence[np.ndarray],
    settings: ReinforcePlusPlusAlgorithm | ReinforcePlusPlusBaselineAlgorithm,
) -> list[list[np.ndarray]]:
    """Standardize over the batch, each value once an episode or once a turn (`statistics`).

    The penalty of invalid turns is added.
    """
    turn_counts = np.concatenate([group.turn_counts for group in groups])
    flat = standardize_returns(
        np.concatenate(values), turn_counts, settings.baseline_weighting, normalise=True
    )
    boundaries = np.cumsum([len(group.episodes) for group in groups])[:-1]
    return [
        broadcast_to_turns(group, advantages, validity_penalties(group, settings))
        for group, advantages in zip(groups, np.split(flat, boundaries), strict=True)
    ]
