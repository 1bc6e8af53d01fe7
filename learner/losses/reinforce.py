"""REINFORCE: the policy gradient as if the policy itself had sampled, without a correction.

Williams 1992. It is biased as soon as another policy has sampled: with old data it moves towards
what that policy did, however unlikely it has become. It is here to compare with.
"""

from __future__ import annotations

import torch

from config import ReinforceLoss
from learner.losses.tokens import TokenLoss, Tokens


def reinforce(tokens: Tokens, settings: ReinforceLoss) -> TokenLoss:
    """Return -A log pi."""
    loss = -tokens.advantage * tokens.log_pi
    nowhere = torch.zeros_like(loss, dtype=torch.bool)
    return TokenLoss(loss, clipped=nowhere, kept=~nowhere)
