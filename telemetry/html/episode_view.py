"""Episodes as a page shows them: each token with its text, its numbers, and what control did there.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
from markupsafe import Markup

from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, finite_or_none, unpack
from protocol.messages import ControlEvent, Response, Trajectory
from telemetry.analysis.exploration import turn_gammas
from telemetry.html.charts import Axis, Chart, Series, draw_chart

Decode = Callable[[list[int]], str]
"""Token ids to text."""

MOST_LOG_RATIO = 20.0
"""Larger differences of log-probs are shown as this one, which is an infinity to any reader."""

EVENT_WORDS = {
    "intervene": "thinking cut",
    "resample": "sampled again",
    "keep": "kept, though stalled: the last that was allowed",
}


@dataclass(frozen=True)
class TokenView:
    """A token of a response."""

    text: str
    uncertainty: float | None  # M_t; None without a signal
    log_prob: float | None  # of the behaviour policy; None for forced tokens
    ratio: float | None  # of another policy over the behaviour policy; None where it is not known
    forced: bool
    version: int  # of the weights it was sampled from
    first_of_version: bool  # the token before is of another version

    @property
    def heat(self) -> str:
        """How strong its color is, from 0 to 1."""
        if self.uncertainty is None:
            return "0"
        return f"{self.uncertainty:.2f}"

    @property
    def description(self) -> str:
        """All its numbers, in words."""
        parts = ["no signal"]
        if self.uncertainty is not None:
            parts = [f"M {self.uncertainty:.3f}"]
        if self.forced:
            parts.append("forced by the controller")
        elif self.log_prob is None:
            parts.append("no log-prob")
        else:
            parts.append(f"log-prob {self.log_prob:.3f}")
        if self.ratio is not None:
            parts.append(f"ratio {self.ratio:.3f}")
        parts.append(f"weights {self.version}")
        return " · ".join(parts)


@dataclass(frozen=True)
class AttemptView:
    """One sampled response."""

    tokens: list[TokenView]
    kept: bool
    events: list[str]
    score: float | None  # Phi
    chart: Markup | None  # of M_t, with where control acted


@dataclass(frozen=True)
class TurnView:
    """One turn: the rejected attempts, then the kept one."""

    number: int  # from 1
    shown: str  # what the prompt is: the whole, or what is new in it
    prompt: str
    action: str
    valid: bool
    reward: float
    advantage: float | None  # None where it is not known
    gamma: float | None  # against the kept turn before
    attempts: list[AttemptView]


@dataclass(frozen=True)
class EpisodeView:
    """One episode."""

    id: str
    task: str
    outcome: str
    turns: list[TurnView]

    @property
    def decisions(self) -> int:
        """How often control acted in it."""
        return sum(len(attempt.events) for turn in self.turns for attempt in turn.attempts)


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
    gammas = turn_gammas(episode.turns)
    prompts = list_prompts(episode)
    turns = []
    for number, (turn, gamma) in enumerate(zip(episode.turns, gammas, strict=True)):
        shown, prompt = prompts[number]
        advantage = advantages[number] if advantages else None
        other_log_probs = log_probs[number] if log_probs else ()
        attempts = [_build_attempt(attempt, False, decode) for attempt in turn.rejected]
        attempts.append(_build_attempt(turn.kept, True, decode, other_log_probs))
        turns.append(
            TurnView(
                number + 1,
                shown,
                decode(prompt),
                turn.action,
                turn.valid,
                turn.reward,
                finite_or_none(advantage),
                gamma,
                attempts,
            )
        )
    return EpisodeView(episode.key.id, episode.task, describe_outcome(episode), turns)


def list_prompts(episode: Trajectory) -> list[tuple[str, list[int]]]:
    """List what each turn's prompt is, in words, and its tokens.

    They are those that are new where the prompt goes on where the turn before ended.
    """
    prompts = []
    before: bytes | None = None
    for turn in episode.turns:
        shown = "what the agent was shown"
        tokens = turn.prompt
        if before is not None and tokens.startswith(before):
            shown = "what the agent was shown since"
            tokens = tokens[len(before) :]
        elif before is not None and episode.rewrites:
            shown = "what the agent was shown, the past as the chat template rewrote it"
        prompts.append((shown, unpack(tokens, INT32).tolist()))
        before = turn.prompt + turn.kept.tokens
    return prompts


def describe_outcome(episode: Trajectory) -> str:
    """How it ended, in words."""
    if episode.drop_reason is not None:
        reasons = [str(episode.drop_reason), episode.detail]
        return f"dropped ({': '.join(filter(None, reasons))})"
    if episode.success:
        return "solved"
    return "not solved"


def describe_event(event: ControlEvent) -> str:
    """A decision of control, with the numbers that led to it."""
    return (
        f"{EVENT_WORDS.get(event.kind, event.kind)} at token {event.position}: {event.reason}, "
        f"{event.value:.4g} against {event.threshold:.4g}"
    )


def _build_attempt(
    response: Response, kept: bool, decode: Decode, other_log_probs: Sequence[float] = ()
) -> AttemptView:
    tokens = _build_tokens(response, decode, other_log_probs)
    events = [describe_event(event) for event in response.events]
    chart = _draw_uncertainty(tokens, response.events) if response.uncertainty else None
    return AttemptView(tokens, kept, events, finite_or_none(response.score), chart)


def _build_tokens(
    response: Response, decode: Decode, other_log_probs: Sequence[float]
) -> list[TokenView]:
    mask = unpack(response.mask, UINT8)
    log_probs = unpack(response.log_probs, FLOAT32)
    uncertainty = unpack(response.uncertainty, FLOAT16)
    forced = response.forced()
    tokens = []
    version_before = None
    for i, token in enumerate(unpack(response.tokens, INT32).tolist()):
        version = _version_at(response, i)
        log_prob = finite_or_none(log_probs[i])
        other_log_prob = _value_at(other_log_probs, i) if mask[i] else None
        tokens.append(
            TokenView(
                decode([token]),
                _value_at(uncertainty, i),
                log_prob,
                _compute_ratio(other_log_prob, log_prob),
                bool(forced[i]),
                version,
                i > 0 and version != version_before,
            )
        )
        version_before = version
    return tokens


def _value_at(values: Sequence[float] | np.ndarray, position: int) -> float | None:
    """The value of a token; None where there is none, or no finite one."""
    if position >= len(values):
        return None
    return finite_or_none(values[position])


def _compute_ratio(log_prob: float | None, behavior: float | None) -> float | None:
    """Ratio of a policy over that of behavior, from log-probs."""
    if log_prob is None or behavior is None:
        return None
    return exp(min(MOST_LOG_RATIO, log_prob - behavior))


def _version_at(response: Response, position: int) -> int:
    """The version of the weights that a token was sampled from; -1 if it is not known."""
    for span in response.spans:
        if span.start <= position < span.stop:
            return span.version
    return -1


def _draw_uncertainty(tokens: Sequence[TokenView], events: Sequence[ControlEvent]) -> Markup:
    points = [(float(i), token.uncertainty) for i, token in enumerate(tokens)]
    cuts = [
        (float(event.position), describe_event(event))
        for event in events
        if event.kind == "intervene"
    ]
    axis = Axis("token", [Series("M_t", points)], cuts)
    return draw_chart(Chart("Uncertainty M_t, token by token", [axis], "no unit"))
