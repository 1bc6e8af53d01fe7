"""The returns that advantages are computed from, and the statistics they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from config import Algorithm
from telemetry.analysis.exploration import equal_returns

EPSILON = 1e-6
"""Added to a standard deviation before it divides."""


@dataclass(frozen=True, slots=True)
class EpisodeReturns:
    """One episode of K turns: rewards, and what models know of its turns."""

    rewards: np.ndarray  # float64 [K], as the environment gave them
    valid: np.ndarray  # bool [K]: the turn had a valid action
    # [K], equal exactly when what the agent was shown is; texts, where similar ones are compared
    anchors: list[str]
    # float64 [K], by the value head, where there is one: of the state that the turn began in
    values: np.ndarray | None = None
    # float64 [K], where vtrace asks for it: sum of log(pi/mu) over the turn's trained tokens
    log_ratios: np.ndarray | None = None
    cut_off: bool = False  # it could have gone on

    @property
    def known_values(self) -> np.ndarray:
        """The value head's values; ValueError where there is no value head."""
        if self.values is None:
            raise ValueError("an episode without values: the algorithm needs a value head")
        return self.values

    @property
    def final_value(self) -> float:
        """Value expected after the last turn.

        It is 0 where the task ended. Where the episode was cut off, it is that of the last state
        that the value head saw.
        """
        if self.cut_off and len(self.known_values):
            return float(self.known_values[-1])
        return 0.0


@dataclass(frozen=True, slots=True)
class GroupReturns:
    """The G episodes of one task."""

    episodes: list[EpisodeReturns]

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [G]."""
        return np.array([episode.rewards.sum() for episode in self.episodes])

    @property
    def turn_counts(self) -> np.ndarray:
        """How many turns each episode has, int64 [G]."""
        return np.array([len(episode.rewards) for episode in self.episodes])


class TurnEstimates(NamedTuple):
    """Advantages and value targets of an episode of K turns, by a value head."""

    advantages: np.ndarray  # float64 [K]
    targets: np.ndarray  # float64 [K]: what the values should have been


def standardize(values: np.ndarray, normalise: bool) -> np.ndarray:
    """Subtract the mean of values [N]; with `normalise`, divide by their deviation + EPSILON.

    The deviation is the sample's (n - 1). The result is exactly 0 where all are equal but for
    rounding, or where there is one: rounding must not become a gradient.
    """
    if len(values) < 2 or equal_returns(values):
        return np.zeros(len(values))
    difference = values - values.mean()
    if not normalise:
        return difference
    return difference / (values.std(ddof=1) + EPSILON)


def standardize_returns(
    returns: np.ndarray, turn_counts: np.ndarray, statistics: str, normalise: bool
) -> np.ndarray:
    """Standardize returns [N] of episodes with so many turns [N].

    With `statistics` "turn", each return counts once a turn in mean and deviation, with "episode"
    once.
    """
    if statistics == "turn":
        first_turns = np.cumsum(turn_counts) - turn_counts
        return standardize(np.repeat(returns, turn_counts), normalise)[first_turns]
    return standardize(returns, normalise)


def broadcast_to_turns(
    group: GroupReturns, advantages: np.ndarray, penalties: np.ndarray
) -> list[np.ndarray]:
    """Give each turn its episode's advantage [G], plus its own penalty [sum K]."""
    turn_counts = group.turn_counts
    flat = np.repeat(advantages, turn_counts) + penalties
    return np.split(flat, np.cumsum(turn_counts)[:-1])


def validity_penalties(group: GroupReturns, settings: Algorithm) -> np.ndarray:
    """Put turns without a valid action `invalid_penalty` below the others, float64 [sum K].

    The penalties are centered over the group's turns.
    """
    valid = np.concatenate([episode.valid for episode in group.episodes]).astype(np.float64)
    return settings.invalid_penalty * standardize(valid, normalise=False)
