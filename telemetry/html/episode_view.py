"""An episode as a page shows it: each token with its text, its uncertainty, its weights, and what
control did there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isfinite, nan

from markupsafe import Markup

from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, unpack
from protocol.messages import ControlEvent, Response, Trajectory
from telemetry.html.charts import Series, line_chart

Decode = Callable[[list[int]], str]
"""Token ids to text."""


@dataclass(frozen=True)
class TokenView:
    """A token of a response."""

    text: str
    uncertainty: float  # M_t; NaN without a signal
    log_prob: float  # of the behaviour policy; NaN for forced tokens
    ratio: float  # of another policy over the behaviour policy; NaN where it is not known
    forced: bool
    version: int  # of the weights it was sampled from
    first_of_version: bool  # the token before is of another version

    @property
    def heat(self) -> str:
        """How strong its colour is, from 0 to 1."""
        return f"{self.uncertainty:.2f}" if isfinite(self.uncertainty) else "0"

    @property
    def says(self) -> str:
        """All its numbers, in words."""
        parts = [f"M {self.uncertainty:.3f}" if isfinite(self.uncertainty) else "no signal"]
        parts.append("forced by the controller" if self.forced else f"log-prob {self.log_prob:.3f}")
        if isfinite(self.ratio):
            parts.append(f"ratio {self.ratio:.3f}")
        return " · ".join([*parts, f"weights {self.version}"])


@dataclass(frozen=True)
class AttemptView:
    """One sampled response."""

    tokens: list[TokenView]
    kept: bool
    events: list[str]
    score: float  # Phi
    chart: Markup | None  # of M_t, with where control acted


@dataclass(frozen=True)
class TurnView:
    """One turn: the rejected attempts, then the kept one."""

    number: int
    prompt: str
    action: str
    valid: bool
    reward: float
    advantage: float  # NaN where it is not known
    gamma: float  # against the kept turn before
    attempts: list[AttemptView]


@dataclass(frozen=True)
class EpisodeView:
    """One episode."""

    id: str
    task: str
    outcome: str
    turns: list[TurnView]


def build_episode_view(
    episode: Trajectory,
    decode: Decode,
    advantages: Sequence[float] = (),
    log_probs: Sequence[Sequence[float]] = (),
) -> EpisodeView:
    """The episode as it is shown.

    `advantages`: one a turn, if they are known. `log_probs`: of the kept responses' tokens by
    another policy, if it was asked.
    """
    turns = []
    before = nan
    for number, turn in enumerate(episode.turns):
        other = log_probs[number] if log_probs else ()
        attempts = [_attempt(attempt, False, decode, ()) for attempt in turn.rejected] + [
            _attempt(turn.kept, True, decode, other)
        ]
        advantage = advantages[number] if advantages else nan
        prompt = decode(unpack(turn.prompt, INT32).tolist())
        gamma = abs(turn.kept.score - before)
        turns.append(
            TurnView(
                number, prompt, turn.action, turn.valid, turn.reward, advantage, gamma, attempts
            )
        )
        before = turn.kept.score
    return EpisodeView(episode.key.id, episode.task, describe_outcome(episode), turns)


def describe_outcome(episode: Trajectory) -> str:
    """How it ended, in words."""
    if episode.drop_reason is not None:
        return f"dropped ({episode.drop_reason}{': ' * bool(episode.detail)}{episode.detail})"
    return "solved" if episode.success else "not solved"


def _attempt(attempt: Response, kept: bool, decode: Decode, other: Sequence[float]) -> AttemptView:
    ids = unpack(attempt.tokens, INT32).tolist()
    mask = unpack(attempt.mask, UINT8)
    behaviour = unpack(attempt.log_probs, FLOAT32)
    seen = unpack(attempt.uncertainty, FLOAT16)
    forced = attempt.forced()
    versions = [
        next((span.version for span in attempt.spans if span.start <= i < span.stop), -1)
        for i in range(len(ids))
    ]
    tokens = []
    for i, token in enumerate(ids):
        uncertainty = float(seen[i]) if i < len(seen) else nan
        ratio = float(_ratio(other[i], behaviour[i])) if i < len(other) and mask[i] else nan
        first = i > 0 and versions[i] != versions[i - 1]
        tokens.append(
            TokenView(
                decode([token]),
                uncertainty,
                float(behaviour[i]),
                ratio,
                bool(forced[i]),
                versions[i],
                first,
            )
        )
    cuts = [
        (float(event.position), describe_event(event))
        for event in attempt.events
        if event.kind == "intervene"
    ]
    points = [(float(i), token.uncertainty) for i, token in enumerate(tokens)]
    chart = (
        line_chart("M_t", [Series("M_t", points, 0)], "token", marks=cuts) if len(seen) else None
    )
    return AttemptView(
        tokens, kept, [describe_event(event) for event in attempt.events], attempt.score, chart
    )


def describe_event(event: ControlEvent) -> str:
    """A decision of control, with the numbers that led to it."""
    what = {
        "intervene": "thinking cut",
        "resample": "sampled again",
        "keep": "kept, though stalled: the last that was allowed",
    }
    return (
        f"{what.get(event.kind, event.kind)} at token {event.position}: {event.reason}, "
        f"{event.value:.4g} against {event.threshold:.4g}"
    )


def _ratio(log_pi: float, log_mu: float) -> float:
    return exp(min(20.0, log_pi - log_mu)) if isfinite(log_mu) else nan
