"""The importance ratio that all corrections start from."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp() of more overflows once it is squared and summed in float32; every correction has truncated long before."""


def log_ratio(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """log(pi/mu) [N], within what exp() can represent."""
    return torch.clamp(log_pi - log_mu, -MAX_LOG_RATIO, MAX_LOG_RATIO)
