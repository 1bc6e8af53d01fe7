"""The record of one response, and the notices of turns and episodes that came to nothing.

A record has what may be trained on, and what the controller saw and decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Literal

import msgspec
import numpy as np

from controller.rules.stall import Mean, Stall, turn_score
from controller.rules.thinking import ThinkingRule
from engine.responses import Generation
from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, none_to_nan, pack
from protocol.messages import (
    ControlEvent,
    DropReason,
    EpisodeKey,
    Response,
    StopReason,
    Trajectory,
    TurnFailed,
    TurnRequest,
)

_STOPS = {"length": StopReason.LENGTH, "repetition": StopReason.REPETITION}

EMPTY_RESPONSE = Response(
    tokens=b"",
    log_probs=b"",
    mask=b"",
    spans=[],
    uncertainty=b"",
    signals=b"",
    events=[],
    stop=StopReason.END,
    score=nan,
    thinking=0,
)
"""The record of a response that the engine did not finish."""


@dataclass(frozen=True)
class ControlRecord:
    """How control watched a response, and what it did to it."""

    rule: ThinkingRule | None  # has seen the response's signals; None: it was not watched
    steered: bool  # the rule's intervention was carried out
    mean: Mean  # how the scores of tokens become the turn's
    skip: int  # tokens that do not count in it
    eta: float | None = None  # in force when it was sampled
    ended_early: bool = False  # since it was all but certain to be stalled


def build_response(generation: Generation, control: ControlRecord) -> Response:
    """Make the record of a response.

    Forced tokens and tokens without a finite log-prob have mask 0.
    """
    rule = control.rule
    log_probs = np.asarray(generation.log_probs, dtype=np.float32)
    response = msgspec.structs.replace(
        EMPTY_RESPONSE,
        tokens=pack(generation.tokens, INT32),
        log_probs=pack(log_probs, FLOAT32),
        mask=pack(np.isfinite(log_probs), UINT8),
        spans=list(generation.spans),
        stop=_stop_reason(generation, control),
        eta=none_to_nan(control.eta),
    )
    if rule is None:
        return response
    length = len(generation.tokens)
    scores = _padded(np.asarray(rule.scores, np.float32), length)
    signals = _padded(np.asarray(rule.signals, np.float32).reshape(-1, 3), length)
    mask = _chosen_by_policy(rule, scores, log_probs, control.steered)
    return msgspec.structs.replace(
        response,
        mask=pack(mask, UINT8),
        uncertainty=pack(scores, FLOAT16),
        signals=pack(signals.ravel(), FLOAT32),
        events=_interventions(rule, length, control.steered),
        score=none_to_nan(turn_score(rule.scores[:length], control.mean, control.skip)),
        thinking=rule.thinking,
        thought_start=rule.thought_start,
        epsilon=none_to_nan(rule.settings.epsilon if control.steered else None),
    )


def with_event(response: Response, kind: Literal["resample", "keep"], stall: Stall) -> Response:
    """Add the event that says why the response is sampled again.

    Or it says that the response, the last one allowed, is kept all the same.
    """
    event = ControlEvent(
        kind,
        stall.reason,
        response.length,
        none_to_nan(stall.change),
        none_to_nan(stall.threshold),
    )
    return msgspec.structs.replace(response, events=[*response.events, event])


def turn_failure(request: TurnRequest, reason: DropReason, detail: str) -> TurnFailed:
    """Notice for the actor that asked for the turn."""
    return TurnFailed(
        key=request.key,
        lease_attempt=request.lease_attempt,
        turn_index=request.turn_index,
        reason=reason,
        detail=detail,
    )


def dropped_episode(key: EpisodeKey, reason: DropReason, detail: str) -> Trajectory:
    """Notice for the learner, in place of the episode."""
    return Trajectory(
        key=key,
        lease_attempt=-1,
        task_index=-1,
        task_type="",
        task="",
        success=False,
        turns=[],
        drop_reason=reason,
        detail=detail,
    )


def _stop_reason(generation: Generation, control: ControlRecord) -> StopReason:
    if control.ended_early:
        return StopReason.EARLY
    return _STOPS.get(generation.finish_reason, StopReason.END)


def _chosen_by_policy(
    rule: ThinkingRule, scores: np.ndarray, log_probs: np.ndarray, steered: bool
) -> np.ndarray:
    """Mask bool [T] of the tokens that the policy sampled with a finite log-prob.

    Log-prob 0 is what vLLM says of a forced token, and one whose signal was lost is not known to be
    one: in a steered turn it is taken for one.
    """
    length = len(scores)
    forced = np.zeros(length, dtype=bool)
    forced[: min(length, len(rule.forced))] = rule.forced[:length]
    if steered:
        forced |= np.isnan(scores) & (log_probs == 0)
    return np.isfinite(log_probs) & ~forced


def _interventions(rule: ThinkingRule, length: int, steered: bool) -> list[ControlEvent]:
    """List the rule's intervention, if one of the response's `length` tokens was forced by it.

    It may have been decided where the response had ended, or lost on its way to the engine.
    """
    intervention = rule.intervention
    if intervention is None or not steered:
        return []
    if not any(rule.forced[intervention.position : length]):
        return []
    return [
        ControlEvent(
            "intervene",
            intervention.reason,
            intervention.position,
            intervention.value,
            intervention.threshold,
        )
    ]


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """The first `length` of the values [N, ...], NaN after them."""
    out = np.full((length, *values.shape[1:]), np.nan, dtype=np.float32)
    out[: len(values)] = values[:length]
    return out
