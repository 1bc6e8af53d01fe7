"""TIS: the policy gradient times a truncated importance weight.

Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; the
truncation is Ionides 2008. The truncation is a bias, towards the behaviour policy.
"""

from __future__ import annotations

import torch

from config import TisLoss
from learner.losses.ratio import log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def truncated_is(tokens: Tokens, settings: TisLoss) -> TokenLoss:
    """Return -w A log pi, with w = min(pi/mu, tis_cap) held constant.

    Tokens whose weight was truncated are clipped. None loses its gradient; an old one only counts
    for no more than the cap.
    """
    ratio = torch.exp(log_ratio(tokens.log_pi, tokens.log_mu).detach())
    weight = ratio.clamp(max=settings.tis_cap)
    clipped = ratio > settings.tis_cap
    loss = -weight * tokens.advantage * tokens.log_pi
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
