"""Thresholds that follow a rate: epsilon and eta of a run that gives none.

They are set so that the share of turns acted upon is what the user asked for.

The published thresholds fit the scale of one model. A threshold that a share r of the values lies
below is their r-quantile; it is estimated in two stages:

1. warm-up: nothing is acted upon; the first values give the empirical quantile;
2. afterwards stochastic approximation (Robbins & Monro 1951) on its logarithm, so that the scale
   does not matter: log q += STEP * (r - acted). Where the share acted upon is r, it stands still on
   average. All it needs to know of a turn is whether it was acted upon: what would have become of
   its value without the action stays unknown, and is not needed.

Turns without a value, which thought too briefly or are the first of their episode, do not count.
Pure: all state is in the object.
"""

from __future__ import annotations

from math import exp

import msgspec

WARM_UP = 256
"""Number of values before the first threshold: at a rate of 5 %, a dozen lie below it."""
STEP = 0.05
"""Step on the logarithm for each turn.

At a rate of 5 %, an idle threshold doubles in 280 turns, and one that always acts halves in 15.
"""
SMALLEST = 1e-9
LARGEST = 1e3


class RateThreshold(msgspec.Struct):
    """A threshold that a share `rate` of the turns falls below.

    `value` is None during the warm-up.
    """

    rate: float
    value: float | None = None
    turns: int = 0  # observed so far
    acted: int = 0  # of these, acted upon
    warm_up_values: list[float] = []

    def observe(self, value: float, acted: bool) -> None:
        """Take a turn's lowest value, and whether it was acted upon.

        A turn counts that could have been acted upon; during the warm-up, any does.
        """
        self.turns += 1
        self.acted += acted
        if self.value is not None:
            self.value = _clamp(self.value * exp(STEP * (self.rate - acted)))
            return
        self.warm_up_values.append(value)
        if len(self.warm_up_values) >= WARM_UP:
            rank = int(self.rate * len(self.warm_up_values))
            self.value = _clamp(sorted(self.warm_up_values)[rank])
            self.warm_up_values = []


def _clamp(value: float) -> float:
    return min(max(value, SMALLEST), LARGEST)


class Calibration(msgspec.Struct):
    """The two thresholds of a run.

    They are of the change of uncertainty within a turn, and from turn to turn.
    """

    epsilon: RateThreshold
    eta: RateThreshold
