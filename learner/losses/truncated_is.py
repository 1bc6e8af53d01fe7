"""TIS: the policy gradient times a truncated importance weight (Yao et al.

2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; the truncation is
Ionides 2008). The truncation is a bias, towards the behaviour policy.
"""

from __future__ import annotations

import torch

from config import LearnerSection
from learner.losses.ratio import log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def tis(tokens: Tokens, settings: LearnerSection) -> TokenLoss:
    """-w A log pi, with w = min(pi/mu, tis_cap) held constant. Clipped are the tokens whose weight was truncated.

    No token loses its gradient; an old one only counts for no more than the cap.
    """
    ratio = torch.exp(log_ratio(tokens.log_pi, tokens.log_mu).detach())
    clipped = ratio > settings.tis_cap
    return TokenLoss(
        -ratio.clamp(max=settings.tis_cap) * tokens.advantage * tokens.log_pi,
        clipped,
        torch.ones_like(clipped),
    )
