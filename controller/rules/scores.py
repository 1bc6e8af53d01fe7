"""How uncertain the policy is before a token, from what the engine measured there: one number, by
the paper or by its authors' code.

T2PO (arXiv 2605.02178), token level. With p the next-token distribution after temperature, V the
vocabulary, H = -sum p log p in nats and C = -(1/j) sum of the log-probs of the j most likely
tokens:

    paper   M_t = alpha * H~_t + (1 - alpha) * (1 - C~_t),  ~ min-max normalised over the turn so far; high = uncertain
    code    S_t = (1 - alpha) * log p(most likely) + alpha * (1 - H_t / log V),  not normalised; high = certain
"""

from __future__ import annotations

from math import log
from typing import Literal, NamedTuple, Protocol

ScoreName = Literal["paper", "code"]


class Signal(NamedTuple):
    """What the engine saw when it was about to sample the token at `position` of the response."""

    position: int
    entropy: float  # nats
    confidence: float  # -mean log-prob of the top j tokens
    top_log_prob: float
    forced: int  # token forced at this position, or -1
    previous: int  # token at position - 1, or -1


class Score(Protocol):
    """One turn's tokens, in order."""

    def observe(self, signal: Signal) -> float:
        """The number of this token; NaN where the engine measured NaN."""
        ...


class PaperScore:
    """M_t in [0, 1], computed online: running minimum and maximum of entropy and confidence over
    the turn."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._entropy = _Running()
        self._confidence = _Running()

    def observe(self, signal: Signal) -> float:
        """M_t after this token; a quantity that has not varied yet counts as 0 (normalised)."""
        h = self._entropy.normalise(signal.entropy)
        c = self._confidence.normalise(signal.confidence)
        return self._alpha * h + (1 - self._alpha) * (1 - c)


class _Running:
    def __init__(self) -> None:
        self._low = float("inf")
        self._high = float("-inf")

    def normalise(self, value: float) -> float:
        if value != value:
            return value
        self._low = min(self._low, value)
        self._high = max(self._high, value)
        width = self._high - self._low
        return (value - self._low) / width if width > 0 else 0.0


class CodeScore:
    """S_t of the authors' processor; `vocabulary` is the number of tokens V.

    It is at most alpha, and has no lower bound.
    """

    def __init__(self, alpha: float, vocabulary: int) -> None:
        self._alpha = alpha
        self._largest = log(vocabulary)

    def observe(self, signal: Signal) -> float:
        """S_t of this token."""
        return (1 - self._alpha) * signal.top_log_prob + self._alpha * (
            1 - signal.entropy / self._largest
        )


def make_score(name: ScoreName, alpha: float, vocabulary: int) -> Score:
    """A fresh score for one turn."""
    return PaperScore(alpha) if name == "paper" else CodeScore(alpha, vocabulary)
