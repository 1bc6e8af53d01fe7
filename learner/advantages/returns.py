"""What advantages are computed from, and the statistics they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from config import LearnerSection
from telemetry.analysis.exploration import equal_returns

EPSILON = 1e-6
"""Added to a standard deviation before it divides."""


@dataclass(frozen=True, slots=True)
class EpisodeReturns:
    """One episode of K turns."""

    rewards: np.ndarray  # float64 [K], as the environment gave them
    valid: np.ndarray  # bool [K]: the turn had a valid action
    anchors: list[
        str
    ]  # [K], equal exactly when what the agent was shown is; texts, where similar ones are compared
    values: np.ndarray | None = (
        # float64 [K], by the value head, where there is one: of the state that the turn began in
        None
    )
    log_ratios: np.ndarray | None = (
        None  # float64 [K], where vtrace asks: sum of log(pi/mu) over the turn's trained tokens
    )
    cut_off: bool = False  # it could have gone on

    @property
    def final_value(self) -> float:
        """What was to be expected after the last turn: nothing where the task ended; where the
        episode was cut off, what was expected of the last state that the value head saw."""
        return float(self.values[-1]) if self.cut_off and len(self.values) else 0.0


@dataclass(frozen=True, slots=True)
class GroupReturns:
    """The episodes of one task."""

    episodes: list[EpisodeReturns]


def standardize(values: np.ndarray, normalise: bool) -> np.ndarray:
    """values [N] less their mean, divided by their sample standard deviation (n - 1) + EPSILON if
    `normalise`.

    Exactly 0 where all are equal but for rounding, or where there is one: rounding must not become
    a gradient.
    """
    if len(values) < 2 or equal_returns(values):
        return np.zeros(len(values))
    difference = values - values.mean()
    return difference / (values.std(ddof=1) + EPSILON) if normalise else difference


def compared(
    returns: np.ndarray, turns: np.ndarray, statistics: str, normalise: bool
) -> np.ndarray:
    """Returns [N], of episodes of so many `turns` [N], centred: with `statistics` "turn", each
    return counts once a turn in mean and deviation, with "episode" once."""
    if statistics == "turn":
        first = np.cumsum(turns) - turns
        return standardize(np.repeat(returns, turns), normalise)[first]
    return standardize(returns, normalise)


def turns_of(group: GroupReturns) -> np.ndarray:
    """How many turns each episode has [G]."""
    return np.array([len(episode.rewards) for episode in group.episodes])


def broadcast_to_turns(
    group: GroupReturns, advantages: np.ndarray, penalties: np.ndarray
) -> list[np.ndarray]:
    """An episode's advantage [G] on each of its turns, plus the penalties [sum K] of the group's
    turns."""
    turns = np.array([len(episode.rewards) for episode in group.episodes])
    return np.split(np.repeat(advantages, turns) + penalties, np.cumsum(turns)[:-1])


def validity(group: GroupReturns, settings: LearnerSection) -> np.ndarray:
    """[sum K]: turns without a valid action are `invalid_penalty` below the others, centred over
    the group's turns."""
    valid = np.concatenate([episode.valid for episode in group.episodes]).astype(np.float64)
    return settings.invalid_penalty * standardize(valid, normalise=False)
