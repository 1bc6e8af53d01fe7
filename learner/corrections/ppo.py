"""PPO: the clipped surrogate of pi/mu (Schulman et al. 2017, eq. 7), with the dual clip of Ye et al. 2020 (eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from config import LearnerSection
from learner.corrections.ratio import log_ratio

DUAL_CLIP = 3.0
"""A bad token's surrogate is no worse than this times its advantage, however much likelier it has become."""


def ppo(log_pi: Tensor, log_mu: Tensor, advantage: Tensor, settings: LearnerSection) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), bounded below by the dual clip where A < 0.

    Clipped are the tokens for which a bound holds: they have no gradient.
    """
    ratio = torch.exp(log_ratio(log_pi, log_mu))
    surrogate = ratio * advantage
    bounded = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high) * advantage
    clipped = bounded < surrogate
    objective = torch.where(clipped, bounded, surrogate)
    floor = DUAL_CLIP * advantage
    dual = (advantage < 0) & (floor > objective)
    return -torch.where(dual, floor, objective), clipped | dual
