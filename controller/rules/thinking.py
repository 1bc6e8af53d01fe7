"""T2PO's token level: when does further thinking no longer change the policy's uncertainty?

(docs/guides/control.md)

T2PO (arXiv 2605.02178), section on token-level control. With Delta_t = |M_t - M_(t-1)| the change
of the score (`rules.scores`), thinking is cut when a statistic of the last N+1 values of Delta
falls below epsilon: their mean (the paper), or their largest (the authors' code, which waits for so
many small ones in a row); with at least L_min thinking tokens, or when it reaches L_max. Pure: no
clock, no IO, so that recorded signals replay to the same decisions, here and inside the engine.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Literal

import msgspec

from controller.rules.scores import ScoreName, Signal, make_score

SignalValues = tuple[float, float, float]
"""Entropy, confidence and top-1 log-prob of one token."""

NO_SIGNAL: SignalValues = (nan, nan, nan)
"""Values of a token whose signal was lost."""


class ThinkingSettings(msgspec.Struct, frozen=True, array_like=True):
    """Parameters of the rule, as in config.ControlSection.

    It travels to the engine with a turn, where the engine decides.
    """

    score: ScoreName
    alpha: float
    vocabulary: int  # V, tokens
    delta_statistic: Literal["mean", "max"]
    window: int  # N
    epsilon: float | None  # None: thinking is cut at L_max alone
    min_thinking: int  # L_min, tokens
    max_thinking: int  # L_max, tokens


Spelling = tuple[int, ...]
"""Token ids of a tag, of which a tokenizer may have several by what stands beside the tag."""


class ThinkTags(msgspec.Struct, frozen=True, array_like=True):
    """The tags of a thought, as the policy may spell them, and where a response begins."""

    opening: tuple[Spelling, ...] = ()
    closing: tuple[Spelling, ...] = ()
    begins_inside: bool = False  # the prompt has opened the thought

    @property
    def longest(self) -> int:
        """Tokens of the longest spelling."""
        return max(map(len, (*self.opening, *self.closing)), default=1)


def contains_tag(tokens: Sequence[int], spellings: tuple[Spelling, ...]) -> bool:
    """Say whether the tokens contain a tag in one of its spellings."""
    by_last_token = _by_last_token(spellings)
    return any(
        tuple(tokens[max(0, end - len(spelling)) : end]) == spelling
        for end, token in enumerate(tokens, start=1)
        for spelling in by_last_token.get(token, ())
    )


def ends_within_tag(tokens: Sequence[int], spellings: tuple[Spelling, ...]) -> bool:
    """Say whether the last tokens begin a tag which has several, and is not complete."""
    return any(
        len(tokens) >= begun and tuple(tokens[-begun:]) == spelling[:begun]
        for spelling in spellings
        for begun in range(1, len(spelling))
    )


@functools.lru_cache(maxsize=64)
def _by_last_token(spellings: tuple[Spelling, ...]) -> dict[int, list[Spelling]]:
    """Return the spellings of a tag by their last token."""
    table: dict[int, list[Spelling]] = {}
    for spelling in spellings:
        table.setdefault(spelling[-1], []).append(spelling)
    return table


class RuleSpec(msgspec.Struct, frozen=True, array_like=True):
    """The rule of a turn, with all that the engine needs to carry it out by itself."""

    settings: ThinkingSettings
    tags: ThinkTags
    closing_tokens: list[int]  # what an intervention forces

    def build(self) -> ThinkingRule:
        """Make a fresh rule, for a response of which nothing has been generated."""
        return ThinkingRule(self.settings, self.tags)


@dataclass(frozen=True)
class Intervention:
    """Cut thinking now. `reason` is "settled" (Delta below epsilon) or "budget" (L_max)."""

    reason: str
    position: int
    value: float
    threshold: float


@dataclass
class ThinkingRule:
    """Watches one turn and decides at most once to cut its thinking.

    `observe(signal)` is called once a token, in order.
    """

    settings: ThinkingSettings
    tags: ThinkTags
    scores: list[float] = field(default_factory=list)
    """M_t of each position; NaN where a frame was lost."""
    signals: list[SignalValues] = field(default_factory=list)
    """Measurements at each position; NaN where a frame was lost."""
    forced: list[bool] = field(default_factory=list)
    """True for each position whose token was forced."""
    thinking: int = 0
    """Tokens inside the thinking span so far."""
    thought_start: int = 0
    """Position of the first of them."""
    last_statistic: float | None = None
    """Value that was compared with epsilon at the last token; None if none was."""
    min_statistic: float | None = None
    """Smallest value that was compared with epsilon so far; None before the first."""
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self._score = make_score(settings.score, settings.alpha, settings.vocabulary)
        self._deltas: deque[float] = deque(maxlen=settings.window + 1)
        self._inside = self.tags.begins_inside
        self._closed = False
        self._opening = _by_last_token(self.tags.opening)
        self._closing = _by_last_token(self.tags.closing)
        self._longest = self.tags.longest
        self._recent: Spelling = ()  # the last tokens, as many as a tag has at most

    def observe(self, signal: Signal) -> Intervention | None:
        """Decide before the token at the signal's position is sampled.

        A repeated or old position changes nothing.
        """
        if signal.position < len(self.scores):
            return None
        while len(self.scores) < signal.position:  # frames may be dropped under overload
            self._append(nan, NO_SIGNAL, forced=False)
            self._recent = ()
        previous_score = self.scores[-1] if self.scores else nan
        score = self._score.observe(signal)
        values = (signal.entropy, signal.confidence, signal.top_log_prob)
        self._append(score, values, forced=signal.forced >= 0)
        self._follow_span(signal.previous)
        self.last_statistic = None
        if not self._inside:
            return None
        if not self.thinking:
            self.thought_start = signal.position
        self.thinking += 1
        if not isnan(previous_score):
            self._deltas.append(abs(score - previous_score))
        if self.intervention is not None:
            return None
        intervention = self._decide(signal.position)
        if intervention is not None and not ends_within_tag(self._recent, self.tags.closing):
            self.intervention = intervention
        return self.intervention

    def force(self, tokens: Sequence[int]) -> None:
        """Take note that `tokens` (at least one) are forced from the last signal's position on.

        Nothing is measured at the positions after it.
        """
        self.forced[-1] = True
        for previous in tokens[:-1]:
            self._append(nan, NO_SIGNAL, forced=True)
            self._follow_span(previous)

    def _append(self, score: float, signal: SignalValues, *, forced: bool) -> None:
        self.scores.append(score)
        self.signals.append(signal)
        self.forced.append(forced)

    def _follow_span(self, previous: int) -> None:
        self._recent = (*self._recent, previous)[-self._longest :]
        if self._ends_with(self._opening, previous) and not self._closed:
            self._inside = True
        elif self._ends_with(self._closing, previous):
            self._inside = False
            self._closed = True

    def _ends_with(self, spellings: dict[int, list[Spelling]], last: int) -> bool:
        return any(
            self._recent[-len(spelling) :] == spelling for spelling in spellings.get(last, ())
        )

    def _decide(self, position: int) -> Intervention | None:
        settings = self.settings
        if self.thinking >= settings.max_thinking:
            limit = float(settings.max_thinking)
            return Intervention("budget", position, float(self.thinking), limit)
        if self.thinking < settings.min_thinking or len(self._deltas) <= settings.window:
            return None
        statistic = self._statistic()
        self.last_statistic = statistic
        if self.min_statistic is None:
            self.min_statistic = statistic
        self.min_statistic = min(self.min_statistic, statistic)
        if settings.epsilon is None or not self._is_settled(statistic, settings.epsilon):
            return None
        return Intervention("settled", position, statistic, settings.epsilon)

    def _statistic(self) -> float:
        if self.settings.delta_statistic == "max":
            return max(self._deltas)
        return sum(self._deltas) / len(self._deltas)

    def _is_settled(self, statistic: float, epsilon: float) -> bool:
        """Compare as the paper does (mean < epsilon), or as the authors' code (max <= epsilon)."""
        if self.settings.delta_statistic == "max":
            return statistic <= epsilon
        return statistic < epsilon
