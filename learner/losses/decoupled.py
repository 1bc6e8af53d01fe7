"""Decoupled PPO: the step is bounded around the policy at the start of the update.

The age of the data is corrected apart from that (Hilton et al. 2022, "Batch size-invariance for
policy optimization", arXiv 2110.00641; for language models: Fu et al. 2025, AReaL, arXiv
2505.24298). It costs a further forward pass over the batch. With one mini-batch an update nothing
is ever clipped, and it is TIS.
"""

from __future__ import annotations

import torch

from config import DecoupledLoss
from learner.losses.ratio import clipped_surrogate, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def decoupled(tokens: Tokens, settings: DecoupledLoss) -> TokenLoss:
    """Return min(pi_prox/mu, tis_cap), held constant, times the surrogate of pi/pi_prox.

    A token is clipped where one of the two bounds holds.
    """
    age_ratio = torch.exp(log_ratio(tokens.log_prox, tokens.log_mu))
    step_ratio = torch.exp(log_ratio(tokens.log_pi, tokens.log_prox))
    surrogate, clipped = clipped_surrogate(step_ratio, tokens.advantage, settings)
    loss = age_ratio.clamp(max=settings.tis_cap) * surrogate
    clipped = clipped | (age_ratio > settings.tis_cap)
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
