"""T2PO's turn level: a turn as uncertain as the one before explores nothing new, so it is sampled again.

T2PO (arXiv 2605.02178), turn-level dynamic sampling: Phi^k is the geometric mean of M_t over turn k and
Gamma^k = |Phi^k - Phi^(k-1)|, against the *kept* previous turn of the same episode. Gamma < eta: stalled. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan

FLOOR = 1e-6
"""M_t is 0 at the least uncertain token of a turn; the geometric mean takes at least this."""


@dataclass(frozen=True)
class Stall:
    """The turn is stalled: its `change` Gamma is below `threshold` eta."""

    change: float
    threshold: float


def turn_score(uncertainty: Sequence[float]) -> float:
    """Phi: geometric mean of M_t over the turn's tokens with a signal; NaN if there is none."""
    seen = [m for m in uncertainty if isfinite(m)]
    return exp(sum(log(max(m, FLOOR)) for m in seen) / len(seen)) if seen else nan


def stalled(score: float, kept_before: float | None, eta: float) -> Stall | None:
    """Whether a turn of this score is stalled, given the score of the kept turn before it (None: it is the first)."""
    if kept_before is None or not (isfinite(score) and isfinite(kept_before)):
        return None
    change = abs(score - kept_before)
    return Stall(change, eta) if change < eta else None
