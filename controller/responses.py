"""The record of one response: what of it may be trained on, and what the controller saw and
decided."""

from __future__ import annotations

from math import nan
from typing import Literal

import msgspec
import numpy as np

from controller.rules.thinking import NEVER, ThinkingRule
from controller.rules.turn import Mean, Stall, turn_score
from engine.responses import Generation
from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, pack
from protocol.messages import ControlEvent, Response, StopReason

_STOPS = {"length": StopReason.LENGTH, "repetition": StopReason.REPETITION}


def build_response(
    generation: Generation,
    rule: ThinkingRule | None,
    steered: bool,
    mean: Mean,
    skip: int,
    eta: float = nan,
    early: bool = False,
) -> Response:
    """`rule` has seen the response's signals; None: it was not watched.

    `steered`: the rule's intervention was carried out. `early`: it was ended, since it was all but
    certain to be stalled.

    `mean` and `skip` say how the scores of tokens become the turn's. Forced tokens and tokens
    without a finite log-prob have mask 0.
    """
    length = len(generation.tokens)
    log_probs = np.asarray(generation.log_probs, dtype=np.float32)
    mask = np.isfinite(log_probs)
    events = []
    uncertainty = signals = b""
    if rule is not None:
        forced = np.zeros(length, dtype=bool)
        forced[: min(length, len(rule.forced))] = rule.forced[:length]
        scores = _padded(np.asarray(rule.scores, np.float32), length)
        # Log-prob 0 is what vLLM says of a forced token, and one whose signal was lost is not known
        # to be one.
        unknown = np.isnan(scores) & (log_probs == 0) & steered
        mask &= ~(forced | unknown)
        uncertainty = pack(scores, FLOAT16)
        signals = pack(
            _padded(np.asarray(rule.signals, np.float32).reshape(-1, 3), length).ravel(), FLOAT32
        )
        if rule.intervention is not None and steered:
            i = rule.intervention
            events.append(ControlEvent("intervene", i.reason, i.position, i.value, i.threshold))
    return Response(
        tokens=pack(generation.tokens, INT32),
        log_probs=pack(log_probs, FLOAT32),
        mask=pack(mask, UINT8),
        spans=list(generation.spans),
        uncertainty=uncertainty,
        signals=signals,
        events=events,
        stop=StopReason.EARLY if early else _STOPS.get(generation.finish_reason, StopReason.END),
        score=turn_score(rule.scores[:length], mean, skip) if rule is not None else nan,
        thinking=rule.thinking if rule is not None else 0,
        epsilon=rule.settings.epsilon
        if rule is not None and steered and rule.settings.epsilon != NEVER
        else nan,
        eta=eta if eta != NEVER else nan,
    )


NOTHING = Response(
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
"""Of a turn that the engine did not finish."""


def noted(attempt: Response, kind: Literal["resample", "keep"], stall: Stall) -> Response:
    """The attempt with the event that says why it is sampled again; or that it is kept all the
    same, the last one allowed."""
    event = ControlEvent(kind, stall.reason, attempt.length, stall.change, stall.threshold)
    return msgspec.structs.replace(attempt, events=[*attempt.events, event])


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """The first `length` of the values [N, ...], NaN after them."""
    out = np.full((length, *values.shape[1:]), np.nan, dtype=np.float32)
    out[: len(values)] = values[:length]
    return out
