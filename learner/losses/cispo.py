"""CISPO: the policy gradient times a clipped importance weight.

MiniMax 2025, MiniMax-M1, arXiv 2506.13585, eq. 4-5. It is TIS with a lower bound as well, and with
PPO's bounds. Every token keeps its gradient, so rare ones that start a new thought are not
silenced. A token that the policy has all but given up still counts with 1 - clip_low.
"""

from __future__ import annotations

import torch

from config import CispoLoss
from learner.losses.ratio import log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def cispo(tokens: Tokens, settings: CispoLoss) -> TokenLoss:
    """Return -w A log pi with w = clip(pi/mu, 1 - clip_low, 1 + clip_high), held constant."""
    ratio = torch.exp(log_ratio(tokens.log_pi, tokens.log_mu).detach())
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    clipped = weight != ratio
    loss = -weight * tokens.advantage * tokens.log_pi
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
