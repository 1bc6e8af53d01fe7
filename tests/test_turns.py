"""The record of a response: what of it may be trained on."""

from __future__ import annotations

from math import nan

from controller.engine.client import Generation
from controller.thinking import Signal, ThinkingRule, ThinkingSettings
from controller.turns import build_attempt
from protocol.arrays import UINT8, unpack
from protocol.messages import Span


def mask_of(log_probs: list[float], forced: list[int]) -> list[int]:
    rule = ThinkingRule(ThinkingSettings(0.4, 7, 1e-4, 16, 450), think_open=1, think_close=2)
    for position, token in enumerate(forced):
        rule.observe(Signal(position, 1.0, 1.0, token, -1))
    tokens = list(range(len(log_probs)))
    attempt = build_attempt(Generation(tokens, log_probs, [Span(0, len(tokens), 0)], "stop"), rule, steered=True)
    return unpack(attempt.mask, UINT8).tolist()


def test_invariant_6_forced_tokens_have_mask_0():
    assert mask_of([-0.5, -0.1, -0.2, -0.3], forced=[-1, 7, 8, -1]) == [1, 0, 0, 1]


def test_tokens_without_a_finite_log_prob_have_mask_0():
    assert mask_of([-0.5, nan, float("-inf"), -0.3], forced=[-1] * 4) == [1, 0, 0, 1]
