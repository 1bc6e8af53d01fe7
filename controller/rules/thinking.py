"""T2PO's token level: when does further thinking no longer change the policy's uncertainty?

(docs/guides/control.md)

T2PO (arXiv 2605.02178), section on token-level control. With Delta_t = |M_t - M_(t-1)| the change
of the score (`rules.scores`), thinking is cut when a statistic of the last N+1 values of Delta
falls below epsilon: their mean (the paper), or their largest (the authors' code, which waits for so
many small ones in a row); with at least L_min thinking tokens, or when it reaches L_max. Pure: no
clock, no IO, so that recorded signals replay to the same decisions, here and inside the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Literal

import msgspec

from controller.rules.scores import ScoreName, Signal, make_score

NEVER = -1.0
"""An epsilon that no change falls below."""


class ThinkingSettings(msgspec.Struct, frozen=True, array_like=True):
    """Parameters of the rule, as in config.ControlSection.

    It travels to the engine with a turn, where the engine decides.
    """

    score: ScoreName
    alpha: float
    vocabulary: int  # V, tokens
    statistic: Literal["mean", "max"]
    window: int  # N
    epsilon: float
    min_thinking: int  # L_min, tokens
    max_thinking: int  # L_max, tokens


class DelegatedRule(msgspec.Struct, frozen=True, array_like=True):
    """The rule of a turn, with all that the engine needs to carry it out by itself."""

    settings: ThinkingSettings
    think_open: int
    think_close: int
    queue: list[int]  # tokens to force

    def begin(self) -> ThinkingRule:
        """For a response of which nothing has been generated."""
        return ThinkingRule(self.settings, self.think_open, self.think_close)


@dataclass(frozen=True)
class Intervention:
    """Cut thinking now. `reason` is "settled" (Delta below epsilon) or "budget" (L_max)."""

    reason: str
    position: int
    value: float
    threshold: float


@dataclass
class ThinkingRule:
    """Watches one turn: `observe(signal)` once per token, in order; an Intervention at most
    once."""

    settings: ThinkingSettings
    think_open: int  # token id of <think>
    think_close: int  # token id of </think>
    scores: list[float] = field(
        default_factory=list
    )  # M_t per position; NaN where a frame was lost
    signals: list[tuple[float, float, float]] = field(
        default_factory=list
    )  # (entropy, confidence, top log-prob); NaN likewise
    forced: list[bool] = field(default_factory=list)  # per position
    thinking: int = 0  # tokens inside the thinking span so far
    compared: float = nan  # what was compared with epsilon at the last token; NaN: nothing was
    lowest: float = inf  # smallest value that was compared with epsilon so far; inf: nothing was
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        s = self.settings
        self._score = make_score(s.score, s.alpha, s.vocabulary)
        self._deltas: deque[float] = deque(maxlen=s.window + 1)
        self._inside = False
        self._closed = False

    def observe(self, signal: Signal) -> Intervention | None:
        """The decision before the token at the signal's position is sampled.

        A repeated or old position changes nothing.
        """
        if signal.position < len(self.scores):
            return None
        while len(self.scores) < signal.position:  # frames may be dropped under overload
            self._append(nan, (nan, nan, nan), False)
        last = self.scores[-1] if self.scores else nan
        now = self._score.observe(signal)
        self._append(
            now, (signal.entropy, signal.confidence, signal.top_log_prob), signal.forced >= 0
        )
        self._follow_span(signal.previous)
        self.compared = nan
        if not self._inside:
            return None
        self.thinking += 1
        if last == last:
            self._deltas.append(abs(now - last))
        if self.intervention is None:
            self.intervention = self._decide(signal.position)
            return self.intervention
        return None

    def force(self, tokens: Sequence[int]) -> None:
        """`tokens` (at least one) are forced from the position of the last signal on, and nothing
        is measured at the others."""
        self.forced[-1] = True
        for before in tokens[:-1]:
            self._append(nan, (nan, nan, nan), True)
            self._follow_span(before)

    def _append(self, score: float, signal: tuple[float, float, float], forced: bool) -> None:
        self.scores.append(score)
        self.signals.append(signal)
        self.forced.append(forced)

    def _follow_span(self, previous: int) -> None:
        if previous == self.think_open and not self._closed:
            self._inside = True
        elif previous == self.think_close:
            self._inside = False
            self._closed = True

    def _decide(self, position: int) -> Intervention | None:
        s = self.settings
        if self.thinking >= s.max_thinking:
            return Intervention("budget", position, float(self.thinking), float(s.max_thinking))
        if self.thinking >= s.min_thinking and len(self._deltas) == s.window + 1:
            value = self.compared = (
                max(self._deltas) if s.statistic == "max" else sum(self._deltas) / len(self._deltas)
            )
            self.lowest = min(self.lowest, value)
            if value <= s.epsilon if s.statistic == "max" else value < s.epsilon:
                return Intervention("settled", position, value, s.epsilon)
        return None
