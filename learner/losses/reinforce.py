"""No correction: the policy gradient as if the policy itself had sampled (Williams 1992,
REINFORCE). Biased as soon as it has not: with old data it moves towards what an old policy did,
however unlikely that has become. To compare with."""

from __future__ import annotations

import torch

from config import LearnerSection
from learner.losses.tokens import TokenLoss, Tokens


def none(tokens: Tokens, settings: LearnerSection) -> TokenLoss:
    """-A log pi."""
    loss = -tokens.advantage * tokens.log_pi
    nowhere = torch.zeros_like(loss, dtype=torch.bool)
    return TokenLoss(loss, nowhere, ~nowhere)
