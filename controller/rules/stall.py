"""T2PO's turn level: a turn as uncertain as the one before is sampled again.

It explores nothing new.

T2PO (arXiv 2605.02178), turn-level dynamic sampling: Phi^k is a mean of the score over turn k (the
paper: the geometric mean of M_t; the authors' code: the arithmetic mean of its own score after the
first 33 tokens), and Gamma^k = |Phi^k - Phi^(k-1)|, against the *kept* previous turn of the same
episode. Gamma < eta: the turn is stalled. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Literal

FLOOR = 1e-6
"""Least score that the geometric mean takes: M_t is 0 at the least uncertain token of a turn."""

Mean = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class Stall:
    """A stalled turn, and why it is one.

    "stalled": its `change` Gamma is below `threshold` eta; "early": it was all but certain to be,
    and was ended (rules/early_stop.py; Gamma is of what there was); "repetition": it repeats
    itself; "stuck": the engine made no progress.
    """

    change: float | None
    threshold: float | None
    reason: Literal["stalled", "early", "repetition", "stuck"] = "stalled"


LOOP = Stall(None, None, "repetition")
"""The engine ended the turn, since it said the same again and again."""
STUCK = Stall(None, None, "stuck")
"""The engine made no progress with the turn."""


def turn_score(scores: Sequence[float], mean: Mean = "geometric", skip: int = 0) -> float | None:
    """Phi, the mean of the scores of the turn's tokens but for the first `skip`.

    Tokens without a signal (NaN) do not count; None if none is left. A geometric mean is of scores
    that are not negative.
    """
    measured = [score for score in scores[skip:] if isfinite(score)]
    if not measured:
        return None
    if mean == "arithmetic":
        return sum(measured) / len(measured)
    return exp(sum(log(max(score, FLOOR)) for score in measured) / len(measured))


def score_change(score: float | None, previous_score: float | None) -> float | None:
    """Gamma, from the scores of a turn and of the kept turn before it; None where one has none."""
    if score is None or previous_score is None:
        return None
    return abs(score - previous_score)


def find_stall(gamma: float | None, eta: float | None, *, zero_counts: bool = True) -> Stall | None:
    """Judge whether a turn of this change is stalled; None: it is not, or nothing was compared.

    `zero_counts`: a change of exactly 0 is a stall, too (in the authors' code it is not).
    """
    if gamma is None or eta is None:
        return None
    if gamma == 0 and not zero_counts:
        return None
    if gamma < eta:
        return Stall(gamma, eta)
    return None
