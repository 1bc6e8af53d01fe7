"""The tokens that a loss is given, and the losses that it returns for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The N trained tokens of a micro-batch. A turn is never split between two."""

    log_pi: Tensor  # float32 [N], of the policy in training; the only one with a gradient
    log_mu: Tensor  # float32 [N], of the behaviour policy, which sampled them
    log_prox: Tensor  # float32 [N], of the policy at the start of the update; log_pi if not needed
    advantage: Tensor  # float32 [N]
    turn: Tensor  # int64 [N], 0 ... turns - 1
    turns: int

    def mean_by_turn(self, values: Tensor) -> Tensor:
        """Return for each token the mean of `values` [N] over its turn."""
        return self.sum_by_turn(values) / self.sum_by_turn(torch.ones_like(values))

    def sum_by_turn(self, values: Tensor) -> Tensor:
        """Return for each token the sum of `values` [N] over its turn."""
        sums = torch.zeros(self.turns, dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.turn, values)[self.turn]


class TokenLoss(NamedTuple):
    """The loss of each token, and what was done to it [N]."""

    loss: Tensor
    clipped: Tensor  # bool: its ratio was clipped or truncated
    kept: Tensor  # bool: False leaves the token out of the loss and of its denominator
