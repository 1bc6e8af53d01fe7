"""PPO: the clipped surrogate of pi/mu (Schulman et al.

2017), with the behaviour policy in the place of the old one.

Where the data is old, much of it is outside the bounds at once and teaches nothing: look at
`clip_fraction`.
"""

from __future__ import annotations

import torch

from config import LearnerSection
from learner.losses.ratio import clipped_surrogate, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def ppo(tokens: Tokens, settings: LearnerSection) -> TokenLoss:
    """The surrogate of r = pi/mu."""
    loss, clipped = clipped_surrogate(
        torch.exp(log_ratio(tokens.log_pi, tokens.log_mu)), tokens.advantage, settings
    )
    return TokenLoss(loss, clipped, torch.ones_like(clipped))
