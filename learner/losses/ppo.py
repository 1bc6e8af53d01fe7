"""PPO: the clipped surrogate of pi/mu, with the behaviour policy in the place of the old one.

Schulman et al. 2017, arXiv 1707.06347, eq. 7. Where the data is old, much of it is outside the
bounds at once and teaches nothing: look at `clip_fraction`.
"""

from __future__ import annotations

import torch

from config import PpoLoss
from learner.losses.ratio import clipped_surrogate, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def ppo(tokens: Tokens, settings: PpoLoss) -> TokenLoss:
    """Return the surrogate of r = pi/mu."""
    ratio = torch.exp(log_ratio(tokens.log_pi, tokens.log_mu))
    loss, clipped = clipped_surrogate(ratio, tokens.advantage, settings)
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
