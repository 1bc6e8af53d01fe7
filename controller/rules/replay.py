"""A recorded turn through a rule again: where would it have acted, and on which numbers?"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from controller.rules.scores import Signal
from controller.rules.thinking import Intervention, RuleSpec


@dataclass(frozen=True)
class ReplayedTurn:
    """A rule's view of a recorded response: a value a token, and its intervention.

    `scores`: NaN where the signal was lost; `statistics`: what was compared with epsilon, None
    where nothing was.
    """

    scores: list[float]
    statistics: list[float | None]
    intervention: Intervention | None


def replay(tokens: np.ndarray, signals: np.ndarray, spec: RuleSpec) -> ReplayedTurn:
    """Feed a recorded response to a fresh rule.

    The response is `tokens` int [T] and `signals` float32 [T, 3] (entropy, confidence, top-1
    log-prob).

    Positions whose signal is lost (NaN) are left out, as they were then. After the position at
    which thinking was cut when this was recorded, tokens and signals are those of the cut turn:
    what a rule that acts later would have seen there is not known.
    """
    rule = spec.build()
    statistics: list[float | None] = []
    previous = -1
    for position, (entropy, confidence, top_log_prob) in enumerate(signals.tolist()):
        if isnan(entropy):
            statistics.append(None)
        else:
            rule.observe(Signal(position, entropy, confidence, top_log_prob, -1, previous))
            statistics.append(rule.last_statistic)
        previous = int(tokens[position])
    missing = len(signals) - len(rule.scores)
    return ReplayedTurn(rule.scores + [nan] * missing, statistics, rule.intervention)
