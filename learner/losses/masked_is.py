"""MIS: importance weights, with tokens (or whole turns) left out whose ratio is out of bounds.

Liu et al. 2025, "When Speed Kills Stability"; IcePop, Ling team 2025. A token that is left out
teaches nothing, which is no small thing where the data is old: look at `masked_share`. By turn, the
ratio is the geometric mean of the tokens': one wild token does not throw out a turn, and a turn
that has drifted throughout goes as a whole.
"""

from __future__ import annotations

import torch

from config import MisLoss
from learner.losses.ratio import log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def masked_is(tokens: Tokens, settings: MisLoss) -> TokenLoss:
    """Return -w A log pi with w = pi/mu, held constant, where mis_low <= ratio <= mis_high.

    The ratio is the token's, or by `mis_level` that of its turn.
    """
    log_r = log_ratio(tokens.log_pi, tokens.log_mu).detach()
    bounded = torch.exp(log_r)
    if settings.mis_level == "turn":
        bounded = torch.exp(tokens.mean_by_turn(log_r))
    kept = (bounded >= settings.mis_low) & (bounded <= settings.mis_high)
    weight = torch.where(kept, torch.exp(log_r), 0.0)
    loss = -weight * tokens.advantage * tokens.log_pi
    return TokenLoss(loss, clipped=torch.zeros_like(kept), kept=kept)
