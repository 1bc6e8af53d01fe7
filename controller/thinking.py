"""T2PO's token level: when does further thinking no longer change the policy's uncertainty? (METHOD: Control in docs/.)

T2PO (arXiv 2605.02178), section on token-level control. Preset `paper`: with H the entropy and C the confidence of the
next-token distribution, each min-max normalised over the turn so far,

    M_t = alpha * H~_t + (1 - alpha) * (1 - C~_t),      Delta_t = |M_t - M_(t-1)|

and thinking is cut when the mean of the last N+1 values of Delta falls below epsilon, with at least L_min thinking tokens,
or when it reaches L_max. Pure: no clock, no IO, so that recorded signals replay to the same decisions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import nan

from config import ControlSection


@dataclass(frozen=True)
class ThinkingSettings:
    """Parameters of the rule, as in config.ControlSection."""

    alpha: float
    window: int  # N
    epsilon: float
    min_thinking: int  # L_min, tokens
    max_thinking: int  # L_max, tokens


def thinking_settings(control: ControlSection) -> ThinkingSettings:
    """The rule of `control.mode`. "budget", the baseline at equal cost, cuts at L_max and never before: no mean is below 0."""
    epsilon = 0.0 if control.mode == "budget" else control.epsilon
    return ThinkingSettings(control.alpha, control.window, epsilon, control.min_thinking, control.max_thinking)


@dataclass(frozen=True)
class Signal:
    """What the engine saw when it was about to sample the token at `position` of the response."""

    position: int
    entropy: float  # nats
    confidence: float  # -mean log-prob of the top j tokens
    forced: int  # token forced at this position, or -1
    previous: int  # token at position - 1, or -1


@dataclass(frozen=True)
class Intervention:
    """Cut thinking now. `reason` is "settled" (Delta below epsilon) or "budget" (L_max)."""

    reason: str
    position: int
    value: float
    threshold: float


class Uncertainty:
    """M_t, computed online: running minimum and maximum of entropy and confidence over the turn."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._entropy = _Running()
        self._confidence = _Running()

    def observe(self, entropy: float, confidence: float) -> float:
        """M_t in [0, 1] after this token; a quantity that has not varied yet counts as 0 (normalised)."""
        h = self._entropy.normalise(entropy)
        c = self._confidence.normalise(confidence)
        return self._alpha * h + (1 - self._alpha) * (1 - c)


class _Running:
    def __init__(self) -> None:
        self._low = float("inf")
        self._high = float("-inf")

    def normalise(self, value: float) -> float:
        self._low = min(self._low, value)
        self._high = max(self._high, value)
        width = self._high - self._low
        return (value - self._low) / width if width > 0 else 0.0


@dataclass
class ThinkingRule:
    """Watches one turn: `observe(signal)` once per token, in order; an Intervention at most once."""

    settings: ThinkingSettings
    think_open: int  # token id of <think>
    think_close: int  # token id of </think>
    uncertainty: list[float] = field(default_factory=list)  # M_t per position; NaN where a frame was lost
    entropy: list[float] = field(default_factory=list)  # nats per position; NaN where a frame was lost
    forced: list[bool] = field(default_factory=list)  # per position
    thinking: int = 0  # tokens inside the thinking span so far
    intervention: Intervention | None = None

    def __post_init__(self) -> None:
        self._m = Uncertainty(self.settings.alpha)
        self._deltas: deque[float] = deque(maxlen=self.settings.window + 1)
        self._inside = False
        self._closed = False

    def observe(self, signal: Signal) -> Intervention | None:
        """The decision after this token's signal. A repeated or old position changes nothing."""
        if signal.position < len(self.uncertainty):
            return None
        while len(self.uncertainty) < signal.position:  # frames may be dropped under overload
            self._append(nan, nan, False)
        last = self.uncertainty[-1] if self.uncertainty else nan
        m = self._m.observe(signal.entropy, signal.confidence)
        self._append(m, signal.entropy, signal.forced >= 0)
        self._follow_span(signal.previous)
        if not self._inside:
            return None
        self.thinking += 1
        if last == last:
            self._deltas.append(abs(m - last))
        if self.intervention is None:
            self.intervention = self._decide(signal.position)
            return self.intervention
        return None

    def _append(self, m: float, entropy: float, forced: bool) -> None:
        self.uncertainty.append(m)
        self.entropy.append(entropy)
        self.forced.append(forced)

    def _follow_span(self, previous: int) -> None:
        if previous == self.think_open and not self._closed:
            self._inside = True
        elif previous == self.think_close:
            self._inside, self._closed = False, True

    def _decide(self, position: int) -> Intervention | None:
        s = self.settings
        if self.thinking >= s.max_thinking:
            return Intervention("budget", position, float(self.thinking), float(s.max_thinking))
        if self.thinking >= s.min_thinking and len(self._deltas) == s.window + 1:
            mean = sum(self._deltas) / len(self._deltas)
            if mean < s.epsilon:
                return Intervention("settled", position, mean, s.epsilon)
        return None
