"""GAE: each turn against what a value head expected of the state it began in (Schulman et al.

2016, arXiv 1506.02438, eq. 16; a turn is one action, as in turn-level PPO). No group is needed: a
task may be played once.

Bad while the value head knows nothing: with lambda 1 the advantage is then the return itself, with
a small lambda the next reward alone. The end of the task has value 0. An episode that was cut off
(turns used up, context full) could have gone on: after it comes the value of the state that its
last turn began in, the last one that is known (Pardo et al. 2018, arXiv 1712.00378, section 3.2,
have the next state's).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config import LearnerSection
from learner.advantages.returns import EpisodeReturns, GroupReturns, standardize, validity
from learner.advantages.vtrace import vtrace


def gae(groups: Sequence[GroupReturns], settings: LearnerSection) -> list[list[np.ndarray]]:
    """The advantages, centred over the batch's turns if `normalise` and divided by their deviation,
    with the penalty of invalid turns."""
    episodes = [episode for group in groups for episode in group.episodes]
    flat = np.concatenate([judged(episode, settings)[0] for episode in episodes])
    flat = standardize(flat, normalise=True) if settings.normalise else flat
    flat = flat + np.concatenate([validity(group, settings) for group in groups])
    split = iter(np.split(flat, np.cumsum([len(episode.rewards) for episode in episodes])[:-1]))
    return [[next(split) for _ in group.episodes] for group in groups]


def judged(episode: EpisodeReturns, settings: LearnerSection) -> tuple[np.ndarray, np.ndarray]:
    """(Advantages [K], what the values should have been [K]): V-trace's where `correction` is
    vtrace, else GAE's and the lambda-returns."""
    if settings.correction == "vtrace":
        return vtrace(episode, settings)
    following = np.append(episode.values[1:], episode.final_value)
    errors = episode.rewards + settings.discount * following - episode.values
    advantages = np.zeros(len(errors))
    running = 0.0
    for k in reversed(range(len(errors))):
        running = errors[k] + settings.discount * settings.gae_lambda * running
        advantages[k] = running
    return advantages, advantages + episode.values
