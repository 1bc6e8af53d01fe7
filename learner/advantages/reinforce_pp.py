"""REINFORCE++: returns are compared over the whole batch, not within a task (Hu et al.

2025, arXiv 2501.03262).

Without a baseline of its own, an easy task's failures are worth more than a hard task's successes:
with tasks of unequal difficulty the variant with a group's mean as baseline (section 3.3) learns
more from each batch. One deviation for all groups does not blow up the groups whose returns hardly
differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config import LearnerSection
from learner.advantages.returns import (
    GroupReturns,
    broadcast_to_turns,
    compared,
    turns_of,
    validity,
)


def reinforce_pp(
    groups: Sequence[GroupReturns], settings: LearnerSection
) -> list[list[np.ndarray]]:
    """Each episode's return less the batch's mean, over the batch's deviation."""
    return _over_batch(groups, [_returns(group) for group in groups], settings)


def reinforce_pp_baseline(
    groups: Sequence[GroupReturns], settings: LearnerSection
) -> list[list[np.ndarray]]:
    """The same, of returns less their group's mean, in which a return counts as often as in the
    batch's."""
    values = [
        compared(_returns(group), turns_of(group), settings.statistics, normalise=False)
        for group in groups
    ]
    return _over_batch(groups, values, settings)


def _returns(group: GroupReturns) -> np.ndarray:
    return np.array([episode.rewards.sum() for episode in group.episodes])


def _over_batch(
    groups: Sequence[GroupReturns], values: Sequence[np.ndarray], settings: LearnerSection
) -> list[list[np.ndarray]]:
    """Normalised over the batch, each value once an episode or once a turn (`statistics`), with the
    penalty of invalid turns."""
    turns = np.concatenate([turns_of(group) for group in groups])
    flat = compared(np.concatenate(values), turns, settings.statistics, normalise=True)
    parts = np.split(flat, np.cumsum([len(group.episodes) for group in groups])[:-1])
    return [
        broadcast_to_turns(group, part, validity(group, settings))
        for group, part in zip(groups, parts, strict=True)
    ]
