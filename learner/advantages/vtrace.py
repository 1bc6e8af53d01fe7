"""V-trace over turns: values of the policy in training from episodes that older weights played.

Espeholt et al. 2018, IMPALA, arXiv 1802.01561, eq. 1 and §4.2. The loss of its tokens:
learner/losses/vtrace.py.
"""

from __future__ import annotations

import numpy as np

from config import GaeAlgorithm, VtraceLoss
from learner.advantages.returns import EpisodeReturns, TurnEstimates
from learner.losses.ratio import MAX_LOG_RATIO


def vtrace(
    episode: EpisodeReturns, settings: GaeAlgorithm, correction: VtraceLoss
) -> TurnEstimates:
    """Return advantages r_k + discount v_(k+1) - V_k and targets v_k.

    v_k = V_k + rho_k d_k + discount c_k (v_(k+1) - V_(k+1)), d_k = r_k + discount V_(k+1) - V_k,
    with rho and c the turn's pi/mu, truncated. The advantage is not yet weighted by rho: the loss
    does that.
    """
    if episode.log_ratios is None:
        raise ValueError("an episode without ratios: V-trace needs those of its turns")
    ratio = np.exp(np.clip(episode.log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    rho = np.minimum(ratio, correction.vtrace_rho)
    c = np.minimum(ratio, correction.vtrace_c)
    values = np.append(episode.known_values, episode.final_value)
    targets = values.copy()
    for k in reversed(range(len(episode.rewards))):
        error = episode.rewards[k] + settings.discount * values[k + 1] - values[k]
        later = settings.discount * c[k] * (targets[k + 1] - values[k + 1])
        targets[k] = values[k] + rho[k] * error + later
    advantages = episode.rewards + settings.discount * targets[1:] - values[:-1]
    return TurnEstimates(advantages, targets=targets[:-1])
