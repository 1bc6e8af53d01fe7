"""The token-level rule: pure, so that what it decided can be decided again from the record."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from config import ControlSection
from controller.thinking import Signal, ThinkingRule, ThinkingSettings, Uncertainty, thinking_settings

OPEN, CLOSE, WORD = 1, 2, 9
PAPER = ThinkingSettings(alpha=0.4, window=7, epsilon=1e-4, min_thinking=16, max_thinking=450)


def run(settings: ThinkingSettings, entropies: list[float], confidences: list[float] | None = None, tokens: list[int] | None = None):
    """The rule after a response `tokens` (default: <think>, then words) with these signals; and all its decisions."""
    rule = ThinkingRule(settings, OPEN, CLOSE)
    confidences = confidences or entropies
    tokens = tokens or [OPEN] + [WORD] * len(entropies)
    decisions = [
        rule.observe(Signal(i, h, c, -1, tokens[i - 1] if i else -1)) for i, (h, c) in enumerate(zip(entropies, confidences, strict=True))
    ]
    return rule, decisions


def reference_uncertainty(entropy: list[float], confidence: list[float], alpha: float) -> list[float]:
    """M_t by the formula, recomputing minimum and maximum over the turn so far at every token."""
    out = []
    for t in range(1, len(entropy) + 1):
        h, c = np.array(entropy[:t]), np.array(confidence[:t])
        h_range, c_range = h.max() - h.min(), c.max() - c.min()
        h_norm = (h[-1] - h.min()) / h_range if h_range > 0 else 0.0
        c_norm = (c[-1] - c.min()) / c_range if c_range > 0 else 0.0
        out.append(alpha * h_norm + (1 - alpha) * (1 - c_norm))
    return out


signals = st.lists(st.tuples(st.floats(0, 7), st.floats(0, 20)), min_size=1, max_size=60)


@given(signals, st.floats(0, 1))
def test_uncertainty_equals_the_formula_recomputed_from_the_start(pairs, alpha):
    entropy, confidence = [h for h, _ in pairs], [c for _, c in pairs]
    online = Uncertainty(alpha)
    got = [online.observe(h, c) for h, c in pairs]
    np.testing.assert_allclose(got, reference_uncertainty(entropy, confidence, alpha), rtol=0, atol=1e-12)


@given(signals)
def test_uncertainty_stays_between_0_and_1(pairs):
    online = Uncertainty(0.4)
    assert all(0 <= online.observe(h, c) <= 1 for h, c in pairs)


def test_flat_signals_cut_thinking_at_the_first_token_that_min_thinking_allows():
    _, decisions = run(PAPER, [1.0] * 40)
    at = next(i for i, d in enumerate(decisions) if d)
    assert (at, decisions[at].reason) == (PAPER.min_thinking, "settled")


def test_changing_signals_never_settle():
    rule, _ = run(PAPER, [float(i % 2) for i in range(200)])
    assert rule.intervention is None


def test_thinking_is_cut_at_its_budget_even_if_it_changes():
    settings = ThinkingSettings(0.4, 7, 1e-4, 16, 30)
    _, decisions = run(settings, [float(i % 2) for i in range(60)])
    at = next(i for i, d in enumerate(decisions) if d)
    assert (at, decisions[at].reason) == (30, "budget")


def test_mode_budget_cuts_at_the_budget_and_never_before():
    """Even where nothing changes at all, which would settle at once under t2po."""
    control = ControlSection(mode="budget", min_thinking=4, max_thinking=30)
    _, decisions = run(thinking_settings(control), [1.0] * 60)
    at = next(i for i, d in enumerate(decisions) if d)
    assert (at, decisions[at].reason) == (30, "budget")


def test_at_most_one_intervention_a_turn():
    _, decisions = run(PAPER, [1.0] * 300)
    assert sum(d is not None for d in decisions) == 1


def test_nothing_is_cut_before_thinking_begins_or_after_it_ended():
    rule, _ = run(PAPER, [1.0] * 100, tokens=[WORD] * 100)
    assert rule.intervention is None
    rule, _ = run(PAPER, [1.0] * 100, tokens=[OPEN, WORD, CLOSE] + [WORD] * 97)
    assert rule.intervention is None and rule.thinking == 2


def test_a_lost_frame_leaves_a_gap_and_no_decision_from_it():
    rule = ThinkingRule(PAPER, OPEN, CLOSE)
    rule.observe(Signal(0, 1.0, 1.0, -1, -1))
    rule.observe(Signal(3, 2.0, 2.0, -1, WORD))
    assert len(rule.uncertainty) == 4 and isnan(rule.uncertainty[1]) and not isnan(rule.uncertainty[3])


@given(signals)
def test_invariant_5_a_recorded_stream_replays_to_the_same_decisions(pairs):
    settings = ThinkingSettings(0.4, 3, 0.05, 4, 20)
    entropy, confidence = [h for h, _ in pairs], [c for _, c in pairs]
    assert run(settings, entropy, confidence)[1] == run(settings, entropy, confidence)[1]


def test_a_repeated_frame_changes_nothing():
    rule = ThinkingRule(PAPER, OPEN, CLOSE)
    for _ in range(2):
        rule.observe(Signal(0, 1.0, 1.0, -1, -1))
    assert len(rule.uncertainty) == 1


def test_forced_positions_are_remembered():
    rule = ThinkingRule(PAPER, OPEN, CLOSE)
    rule.observe(Signal(0, 1.0, 1.0, -1, -1))
    rule.observe(Signal(1, 1.0, nan, CLOSE, OPEN))
    assert rule.forced == [False, True]
