"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al., 2024).

torch.optim.Muon orthogonalizes in bfloat16, which CPUs without bfloat16 arithmetic emulate several
times slower than float32; this one works in the parameters' own precision. Used for the warm start
alone: from the same number of demonstrations, a small policy gets much further with it than with
AdamW (docs/measurements/learning.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration, which maps singular values to about 1.

They are those of Jordan et al., 2024.
"""
STEPS = 5
"""How often the iteration is applied."""
EPSILON = 1e-7
"""Smallest norm that a matrix is divided by."""


class Muon(torch.optim.Optimizer):
    """Optimizer of matrices [m, n], and of nothing else.

    `lr` is the size of the change of a square matrix, in units of its spectral norm.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.lerp_(p.grad, 1 - group["momentum"])
                # Nesterov's look-ahead
                direction = orthogonalize(p.grad.lerp(velocity, group["momentum"]))
                p.add_(direction, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix [m, n] with the singular vectors of `matrix` and singular values near 1.

    They are between about 0.7 and 1.2.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T).T  # of the smaller square
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
