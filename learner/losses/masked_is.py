"""MIS: importance weights, and tokens (or whole turns) whose ratio is out of bounds are left out
(Liu et al. 2025, "When Speed Kills Stability"; IcePop, Ling team 2025).

What is left out teaches nothing, and is no small thing where the data is old: look at
`masked_share`. By turn, the ratio is the geometric mean of the tokens': one wild token does not
throw out a turn, and a turn that has drifted throughout goes as a whole.
"""

from __future__ import annotations

import torch

from config import LearnerSection
from learner.losses.ratio import log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def mis(tokens: Tokens, settings: LearnerSection) -> TokenLoss:
    """-w A log pi with w = pi/mu, held constant, where `mis_low` <= ratio <= `mis_high` (of the
    token, or by `mis_level` of its turn)."""
    log_r = log_ratio(tokens.log_pi, tokens.log_mu).detach()
    judged = torch.exp(tokens.mean_by_turn(log_r) if settings.mis_level == "turn" else log_r)
    kept = (judged >= settings.mis_low) & (judged <= settings.mis_high)
    weight = torch.where(kept, torch.exp(log_r), 0.0)
    return TokenLoss(-weight * tokens.advantage * tokens.log_pi, torch.zeros_like(kept), kept)
