"""A recorded turn through a rule again: where would it have acted, and on which numbers?"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np

from controller.rules.scores import Signal
from controller.rules.thinking import DelegatedRule, Intervention


@dataclass(frozen=True)
class Replayed:
    """`scores` and `compared` have a value a token: the score, and what was compared with epsilon
    there (NaN: nothing was)."""

    scores: list[float]
    compared: list[float]
    intervention: Intervention | None


def replay(tokens: np.ndarray, signals: np.ndarray, delegated: DelegatedRule) -> Replayed:
    """Feed a response's `tokens` int [T] and `signals` float32 [T, 3] (entropy, confidence, top-1
    log-prob) to a fresh rule.

    Positions whose signal is lost (NaN) are left out, as they were then. After the position at
    which thinking was cut when this was recorded, tokens and signals are those of the cut turn:
    what a rule that acts later would have seen there is not known.
    """
    rule = delegated.begin()
    compared = []
    for position, (entropy, confidence, top) in enumerate(signals.tolist()):
        if entropy == entropy:
            rule.observe(
                Signal(
                    position,
                    entropy,
                    confidence,
                    top,
                    -1,
                    int(tokens[position - 1]) if position else -1,
                )
            )
        compared.append(rule.compared if entropy == entropy else nan)
    scores = rule.scores + [nan] * (len(signals) - len(rule.scores))
    return Replayed(scores, compared, rule.intervention)
