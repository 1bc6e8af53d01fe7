"""GAE: each turn against what a value head expected of the state it began in.

Schulman et al. 2016, arXiv 1506.02438, eq. 16; a turn is one action, as in turn-level PPO. No group
is needed: a task may be played once.

It is bad while the value head knows nothing: with lambda 1 the advantage is then the return itself,
with a small lambda the next reward alone. The end of the task has value 0. An episode that was cut
off (turns used up, context full) could have gone on. After it comes the value of the state that its
last turn began in, the last one that is known (Pardo et al. 2018, arXiv 1712.00378, section 3.2,
have the next state's).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config import GaeAlgorithm, VtraceLoss
from learner.advantages.returns import (
    EpisodeReturns,
    GroupReturns,
    TurnEstimates,
    standardize,
    validity_penalties,
)
from learner.advantages.vtrace import vtrace


def gae(
    groups: Sequence[GroupReturns], settings: GaeAlgorithm, correction: VtraceLoss | None = None
) -> list[list[np.ndarray]]:
    """Return the advantages, with the penalty of invalid turns.

    With `normalise` they are centered over the batch's turns and divided by their deviation.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    flat = np.concatenate(
        [estimate_turns(episode, settings, correction).advantages for episode in episodes]
    )
    if settings.normalize_advantages:
        flat = standardize(flat, normalise=True)
    flat = flat + np.concatenate([validity_penalties(group, settings) for group in groups])
    boundaries = np.cumsum([len(episode.rewards) for episode in episodes])[:-1]
    by_episode = iter(np.split(flat, boundaries))
    return [[next(by_episode) for _ in group.episodes] for group in groups]


def estimate_turns(
    episode: EpisodeReturns, settings: GaeAlgorithm, correction: VtraceLoss | None = None
) -> TurnEstimates:
    """Return V-trace's estimates with a `correction`, else GAE and the lambda-returns."""
    if correction is not None:
        return vtrace(episode, settings, correction)
    next_values = np.append(episode.known_values[1:], episode.final_value)
    errors = episode.rewards + settings.discount * next_values - episode.known_values
    advantages = np.zeros(len(errors))
    running = 0.0
    for k in reversed(range(len(errors))):
        running = errors[k] + settings.discount * settings.gae_lambda * running
        advantages[k] = running
    return TurnEstimates(advantages, targets=advantages + episode.known_values)
