"""TIS: the policy gradient times a truncated importance weight (Yao et al. 2025, "Your Efficient RL Framework Secretly
Brings You Off-Policy RL Training"; the truncation is Ionides 2008)."""

from __future__ import annotations

import torch
from torch import Tensor

from config import LearnerSection
from learner.corrections.ratio import log_ratio


def tis(log_pi: Tensor, log_mu: Tensor, advantage: Tensor, settings: LearnerSection) -> tuple[Tensor, Tensor]:
    """-w A log pi, with w = min(pi/mu, tis_cap) held constant. Clipped are the tokens whose weight was truncated.

    No token loses its gradient; an old one only counts for no more than the cap.
    """
    ratio = torch.exp(log_ratio(log_pi, log_mu).detach())
    weight = torch.clamp(ratio, max=settings.tis_cap)
    return -weight * advantage * log_pi, ratio > settings.tis_cap
