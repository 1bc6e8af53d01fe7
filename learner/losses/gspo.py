"""GSPO: the clipped surrogate of one ratio a turn, the geometric mean of its tokens' ratios.

Zheng et al. 2025, arXiv 2507.18071, eq. 5-7. Its bounds are of another size than PPO's (the paper:
3e-4 and 4e-4), since a mean over many tokens hardly moves: with 0.2 nothing is ever clipped. In a
token mean a turn counts by its length; the paper's mean over sequences is `loss_mean` turn.
"""

from __future__ import annotations

import torch

from config import GspoLoss
from learner.losses.ratio import clipped_surrogate, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def gspo(tokens: Tokens, settings: GspoLoss) -> TokenLoss:
    """Return the surrogate of s = exp(mean over the turn of log(pi/mu)).

    All tokens of a turn share s, and its gradient reaches each of them.
    """
    turn_ratio = torch.exp(tokens.mean_by_turn(log_ratio(tokens.log_pi, tokens.log_mu)))
    loss, clipped = clipped_surrogate(turn_ratio, tokens.advantage, settings)
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
