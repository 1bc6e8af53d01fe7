"""Ending a turn before it is complete, where it is all but certain to be stalled.

It is a sequential test on the mean of the turn's scores.

Phi is a mean over the turn's tokens (rules/stall.py). After n of at most T tokens, with m and s the
mean and standard deviation of what has been averaged so far, and the rest of the turn like its
beginning, the final mean has the mean m and the variance

    s^2 (1/n - 1/T)

The test looks when n is `FIRST_LOOK`, twice, four times, ... as many. Look k (from 1) may err with
probability delta / (k (k + 1)), which adds up to at most delta over all looks (Bonferroni); its
bound is Student's quantile with n - 1 degrees of freedom, for the unknown s:

    final Phi in  f(m +- q s sqrt(1/n - 1/T))

    f: exp for the geometric mean, of logarithms; the identity for the arithmetic one.

If that lies within (Phi_before - eta, Phi_before + eta), the turn will be stalled. The assumption
is what it is: a turn's thought and its action differ, and tokens depend on each other. `run.py
replay` counts on recorded turns how often it would have been wrong. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log, sqrt
from statistics import NormalDist

from controller.rules.stall import FLOOR, Mean

FIRST_LOOK = 16
"""Tokens before the first look."""


@dataclass
class EarlyStopTest:
    """Tests one turn while it is generated."""

    delta: float  # probability of an error, in (0, 1)
    previous_score: float  # Phi of the kept turn before
    eta: float
    max_tokens: int  # of the turn
    mean: Mean = "geometric"
    skip: int = 0
    position: int | None = None
    """Position of the token at which the turn was found to be stalled."""
    _seen: int = field(default=0, init=False)
    _counted: int = field(default=0, init=False)
    _sum: float = field(default=0.0, init=False)
    _squares: float = field(default=0.0, init=False)
    _looks: int = field(default=0, init=False)

    def observe(self, scores: Sequence[float]) -> bool:
        """Take the scores of the turn's tokens so far (NaN: a signal was lost).

        True once, when the turn is found to be stalled.
        """
        first_new = self._seen
        self._seen = max(self._seen, len(scores))
        return any(
            self._take(score, position)
            for position, score in enumerate(scores[first_new:], first_new)
        )

    def _take(self, score: float, position: int) -> bool:
        if position < self.skip or not isfinite(score) or self.position is not None:
            return False
        value = score
        if self.mean == "geometric":
            value = log(max(score, FLOOR))
        self._counted += 1
        self._sum += value
        self._squares += value * value
        if self._counted < FIRST_LOOK << self._looks:
            return False
        self._looks += 1
        low, high = self._bounds()
        if not self.previous_score - self.eta < low <= high < self.previous_score + self.eta:
            return False
        self.position = position
        return True

    def _bounds(self) -> tuple[float, float]:
        """Bound the final Phi, at this look."""
        n = self._counted
        k = self._looks
        center = self._sum / n
        deviation = sqrt(max(0.0, (self._squares - n * center * center) / (n - 1)))
        to_come = max(0.0, 1 / n - 1 / max(n, self.max_tokens - self.skip))
        quantile = student_quantile(1 - self.delta / (2 * k * (k + 1)), n - 1)
        half = quantile * deviation * sqrt(to_come)
        if self.mean == "geometric":
            return exp(center - half), exp(center + half)
        return center - half, center + half


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t distribution with `freedom` degrees of freedom.

    By the normal one's expansion for many degrees of freedom (Abramowitz & Stegun 26.7.5): from 15
    on right to 1e-3 of itself for shares up to 1 - 1e-4.
    """
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
