"""What a correction is given, and what it returns."""

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
    # float32 [N], of the policy at the start of the update ("proximal"); log_pi where nobody asked
    # for it
    log_prox: Tensor
    advantage: Tensor  # float32 [N]
    turn: Tensor  # int64 [N], 0 ... turns - 1
    turns: int

    def mean_by_turn(self, values: Tensor) -> Tensor:
        """For each token the mean of `values` [N] over its turn."""
        return self.sum_by_turn(values) / self.sum_by_turn(torch.ones_like(values))

    def sum_by_turn(self, values: Tensor) -> Tensor:
        """For each token the sum of `values` [N] over its turn."""
        return torch.zeros(self.turns, dtype=values.dtype, device=values.device).index_add(
            0, self.turn, values
        )[self.turn]


class TokenLoss(NamedTuple):
    """One value a token [N]."""

    loss: Tensor
    clipped: Tensor  # bool: its ratio was clipped or truncated
    kept: Tensor  # bool: False leaves the token out of the loss and of its denominator
