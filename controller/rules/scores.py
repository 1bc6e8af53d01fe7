"""How uncertain the policy is before a token, from what the engine measured there.

It is one number, by the paper or by its authors' code.

T2PO (arXiv 2605.02178), token level. With p the next-token distribution after temperature, V the
vocabulary, H = -sum p log p in nats and C = -(1/j) sum of the log-probs of the j most likely
tokens:

    paper   M_t = alpha * H~_t + (1 - alpha) * (1 - C~_t)
            ~: min-max normalized over the turn so far; high = uncertain
    code    S_t = (1 - alpha) * log p(most likely) + alpha * (1 - H_t / log V)
            not normalized; high = certain
"""

from __future__ import annotations

from math import isnan, log
from typing import Literal, NamedTuple, Protocol

ScoreName = Literal["paper", "code"]


class Signal(NamedTuple):
    """Measurements of the engine when it was about to sample the token at `position`."""

    position: int  # in the response
    entropy: float  # nats
    confidence: float  # -mean log-prob of the top j tokens
    top_log_prob: float
    forced: int  # token forced at this position, or -1
    previous: int  # token at position - 1, or -1


class Score(Protocol):
    """Scores one turn's tokens, in order."""

    def observe(self, signal: Signal) -> float:
        """Score this token; NaN where the engine measured NaN."""
        ...


class PaperScore:
    """M_t in [0, 1], computed online.

    It keeps the running minimum and maximum of entropy and confidence over the turn.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._entropy = _RunningRange()
        self._confidence = _RunningRange()

    def observe(self, signal: Signal) -> float:
        """M_t after this token; a quantity that has not varied yet counts as 0 (normalized)."""
        entropy = self._entropy.normalize(signal.entropy)
        confidence = self._confidence.normalize(signal.confidence)
        return self._alpha * entropy + (1 - self._alpha) * (1 - confidence)


class _RunningRange:
    def __init__(self) -> None:
        self._low = float("inf")
        self._high = float("-inf")

    def normalize(self, value: float) -> float:
        if isnan(value):
            return value
        self._low = min(self._low, value)
        self._high = max(self._high, value)
        width = self._high - self._low
        if width > 0:
            return (value - self._low) / width
        return 0.0


class CodeScore:
    """S_t of the authors' processor; `vocabulary` is the number of tokens V.

    It is at most alpha, and has no lower bound.
    """

    def __init__(self, alpha: float, vocabulary: int) -> None:
        self._alpha = alpha
        self._max_entropy = log(vocabulary)

    def observe(self, signal: Signal) -> float:
        """S_t of this token."""
        certainty = 1 - signal.entropy / self._max_entropy
        return (1 - self._alpha) * signal.top_log_prob + self._alpha * certainty


def make_score(name: ScoreName, alpha: float, vocabulary: int) -> Score:
    """Make a fresh score for one turn."""
    if name == "paper":
        return PaperScore(alpha)
    return CodeScore(alpha, vocabulary)
