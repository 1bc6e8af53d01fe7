"""The importance ratio that all losses start from, and PPO's surrogate of it."""

from __future__ import annotations

import torch
from torch import Tensor

from config import ClippedLoss

MAX_LOG_RATIO = 20.0
"""Bound on the log ratio: exp() of more overflows once it is squared and summed in float32.

Every loss has truncated its weights long before.
"""

DUAL_CLIP = 3.0
"""A bad token's surrogate is no worse than this times its advantage, however likely it is now."""


def log_ratio(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """Return log(pi/mu) [N], within what exp() can represent."""
    return torch.clamp(log_pi - log_mu, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, settings: ClippedLoss
) -> tuple[Tensor, Tensor]:
    """Return -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) [N], and where a bound holds [N].

    Where A < 0, the objective is bounded below by the dual clip. Where a bound holds there is no
    gradient. Schulman et al. 2017, eq. 7; the dual clip: Ye et al. 2020, eq. 5; an upper bound of
    its own ("clip-higher"): Yu et al. 2025 (DAPO).
    """
    surrogate = ratio * advantage
    bounded = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high) * advantage
    clipped = bounded < surrogate
    objective = torch.where(clipped, bounded, surrogate)
    floor = DUAL_CLIP * advantage
    dual_clipped = (advantage < 0) & (floor > objective)
    return -torch.where(dual_clipped, floor, objective), clipped | dual_clipped
