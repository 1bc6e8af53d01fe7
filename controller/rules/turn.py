"""T2PO's turn level: a turn as uncertain as the one before explores nothing new, so it is sampled
again.

T2PO (arXiv 2605.02178), turn-level dynamic sampling: Phi^k is a mean of the score over turn k (the
paper: the geometric mean of M_t; the authors' code: the arithmetic mean of its own score after the
first 32 tokens), and Gamma^k = |Phi^k - Phi^(k-1)|, against the *kept* previous turn of the same
episode. Gamma < eta: stalled. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan
from typing import Literal

FLOOR = 1e-6
"""M_t is 0 at the least uncertain token of a turn; the geometric mean takes at least this."""

Mean = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class Stall:
    """The turn is stalled.

    "stalled": its `change` Gamma is below `threshold` eta; "early": it was all but certain to be,
    and was ended (rules/early.py; Gamma is of what there was); "repetition": it repeats itself;
    "stuck": the engine made no progress.
    """

    change: float
    threshold: float
    reason: Literal["stalled", "early", "repetition", "stuck"] = "stalled"


LOOP = Stall(nan, nan, "repetition")
"""The engine ended the turn, since it said the same again and again."""
STUCK = Stall(nan, nan, "stuck")


def turn_score(scores: Sequence[float], mean: Mean = "geometric", skip: int = 0) -> float:
    """Phi: mean of the scores of the turn's tokens with a signal, but for the first `skip` tokens;
    NaN if there is none.

    A geometric mean is of scores that are not negative.
    """
    seen = [m for m in scores[skip:] if isfinite(m)]
    if not seen:
        return nan
    if mean == "arithmetic":
        return sum(seen) / len(seen)
    return exp(sum(log(max(m, FLOOR)) for m in seen) / len(seen))


def change(score: float, kept_before: float | None) -> float:
    """Gamma, given the score of the kept turn before (None: it is the first); NaN where there is
    nothing to compare."""
    return nan if kept_before is None else abs(score - kept_before)


def stalled(gamma: float, eta: float, *, zero_counts: bool = True) -> Stall | None:
    """Whether a turn of this change is stalled.

    `zero_counts`: a change of exactly 0 is one, too (in the authors' code it is not).
    """
    if gamma == 0 and not zero_counts:
        return None
    return Stall(gamma, eta) if gamma < eta else None
