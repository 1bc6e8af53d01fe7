"""The importance ratio that all corrections start from, and PPO's surrogate of it."""

from __future__ import annotations

import torch
from torch import Tensor

from config import LearnerSection

MAX_LOG_RATIO = 20.0
"""exp() of more overflows once it is squared and summed in float32; every correction has truncated
long before."""

DUAL_CLIP = 3.0
"""A bad token's surrogate is no worse than this times its advantage, however much likelier it has
become."""


def log_ratio(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """log(pi/mu) [N], within what exp() can represent."""
    return torch.clamp(log_pi - log_mu, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, settings: LearnerSection
) -> tuple[Tensor, Tensor]:
    """(-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), bounded below by the dual clip where A <
    0; where a bound holds), each [N].

    Schulman et al. 2017, eq. 7; the dual clip: Ye et al. 2020, eq. 5; an upper bound of its own
    ("clip-higher"): Yu et al. 2025 (DAPO). Where a bound holds there is no gradient.
    """
    surrogate = ratio * advantage
    bounded = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high) * advantage
    clipped = bounded < surrogate
    objective = torch.where(clipped, bounded, surrogate)
    floor = DUAL_CLIP * advantage
    dual = (advantage < 0) & (floor > objective)
    return -torch.where(dual, floor, objective), clipped | dual
