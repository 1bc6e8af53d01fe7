"""The record of a response: what of it may be trained on."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from controller.responses import ControlRecord, build_response
from controller.rules.scores import Signal
from controller.rules.thinking import ThinkingRule, ThinkingSettings
from engine.responses import Generation
from protocol.arrays import UINT8, unpack
from protocol.messages import Span
from tests.fixtures.messages import make_tags


def mask_of(log_probs: list[float], forced: list[int]) -> list[int]:
    rule = ThinkingRule(
        ThinkingSettings("paper", 0.4, 100, "mean", 7, 1e-4, 16, 450), make_tags(1, 2)
    )
    for position, token in enumerate(forced):
        rule.observe(Signal(position, 1.0, 1.0, -0.5, token, -1))
    tokens = list(range(len(log_probs)))
    attempt = build_response(
        Generation(tokens, log_probs, [Span(0, len(tokens), 0)], "stop"),
        ControlRecord(rule, True, "geometric", 0),
    )
    return unpack(attempt.mask, UINT8).tolist()


def test_invariant_6_forced_tokens_have_mask_0():
    assert mask_of([-0.5, -0.1, -0.2, -0.3], forced=[-1, 7, 8, -1]) == [1, 0, 0, 1]


def test_invariant_6_token_that_may_have_been_forced_unseen_has_mask_0():
    """Invariant 6: a token whose signal was lost and may have been forced has mask 0."""
    rule = ThinkingRule(
        ThinkingSettings("paper", 0.4, 100, "mean", 7, 1e-4, 16, 450), make_tags(1, 2)
    )
    rule.observe(Signal(0, 1.0, 1.0, -0.5, -1, -1))
    rule.observe(Signal(3, 1.0, 1.0, -0.5, -1, -1))
    generation = Generation([5, 6, 7, 8], [0.0, 0.0, -0.5, 0.0], [Span(0, 4, 0)], "stop")
    masks = [
        build_response(generation, ControlRecord(rule, steered, "geometric", 0)).mask
        for steered in (True, False)
    ]
    assert [unpack(mask, UINT8).tolist() for mask in masks] == [[1, 0, 1, 1], [1, 1, 1, 1]]


def test_tokens_without_a_finite_log_prob_have_mask_0():
    assert mask_of([-0.5, nan, float("-inf"), -0.3], forced=[-1] * 4) == [1, 0, 0, 1]


def test_signals_are_recorded_as_they_came_and_nan_where_none_did():
    rule = ThinkingRule(
        ThinkingSettings("paper", 0.4, 100, "mean", 7, 1e-4, 16, 450), make_tags(1, 2)
    )
    rule.observe(Signal(0, 0.25, 1.5, -0.5, -1, -1))
    rule.observe(Signal(2, 0.75, 2.5, -0.125, -1, 9))
    attempt = build_response(
        Generation([5, 6, 7, 8], [-1.0] * 4, [Span(0, 4, 0)], "stop"),
        ControlRecord(rule, True, "geometric", 0),
    )
    np.testing.assert_array_equal(
        attempt.signal_table(), [[0.25, 1.5, -0.5], [nan] * 3, [0.75, 2.5, -0.125], [nan] * 3]
    )


@pytest.mark.parametrize(
    ("reason", "stop"),
    [("length", "length"), ("repetition", "repetition"), ("stop", "end"), ("abort", "end")],
)
def test_the_record_says_why_generation_ended(reason, stop):
    assert (
        build_response(
            Generation([5], [-1.0], [Span(0, 1, 0)], reason),
            ControlRecord(None, False, "geometric", 0),
        ).stop
        == stop
    )
