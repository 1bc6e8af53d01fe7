"""The token-level rule: pure, so that what it decided can be decided again from the record."""

from __future__ import annotations

from math import isnan, nan

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rules.scores import Signal
from controller.rules.thinking import RuleSpec, ThinkingRule, ThinkingSettings, ThinkTags
from tests.fixtures.messages import make_tags

OPEN = 1
CLOSE = 2
WORD = 9
PAPER = ThinkingSettings(
    "paper", 0.4, 100, "mean", window=7, epsilon=1e-4, min_thinking=16, max_thinking=450
)


def run(
    settings: ThinkingSettings,
    entropies: list[float],
    confidences: list[float] | None = None,
    tokens: list[int] | None = None,
):
    """Return the rule after a response with these signals, and all its decisions.

    `tokens`: <think>, then words, by default.
    """
    rule = ThinkingRule(settings, make_tags(OPEN, CLOSE))
    confidences = confidences or entropies
    tokens = tokens or [OPEN] + [WORD] * len(entropies)
    decisions = [
        rule.observe(Signal(i, h, c, -c / 2, -1, tokens[i - 1] if i else -1))
        for i, (h, c) in enumerate(zip(entropies, confidences, strict=True))
    ]
    return rule, decisions


def reference_uncertainty(
    entropy: list[float], confidence: list[float], alpha: float
) -> list[float]:
    """M_t by the formula, recomputing minimum and maximum over the turn so far at every token."""
    out = []
    for t in range(1, len(entropy) + 1):
        h = np.array(entropy[:t])
        c = np.array(confidence[:t])
        h_range = h.max() - h.min()
        c_range = c.max() - c.min()
        h_norm = (h[-1] - h.min()) / h_range if h_range > 0 else 0.0
        c_norm = (c[-1] - c.min()) / c_range if c_range > 0 else 0.0
        out.append(alpha * h_norm + (1 - alpha) * (1 - c_norm))
    return out


signals = st.lists(st.tuples(st.floats(0, 7), st.floats(0, 20)), min_size=1, max_size=60)


@given(signals, st.floats(0, 1))
def test_uncertainty_equals_the_formula_recomputed_from_the_start(pairs, alpha):
    entropy = [h for h, _ in pairs]
    confidence = [c for _, c in pairs]
    got = run(msgspec.structs.replace(PAPER, alpha=alpha), entropy, confidence)[0].scores
    np.testing.assert_allclose(
        got, reference_uncertainty(entropy, confidence, alpha), rtol=0, atol=1e-12
    )


@given(signals)
def test_uncertainty_stays_between_0_and_1(pairs):
    assert all(
        0 <= m <= 1 for m in run(PAPER, [h for h, _ in pairs], [c for _, c in pairs])[0].scores
    )


def test_flat_signals_cut_thinking_at_the_first_token_that_min_thinking_allows():
    _, decisions = run(PAPER, [1.0] * 40)
    at = next(i for i, d in enumerate(decisions) if d)
    assert (at, decisions[at].reason) == (PAPER.min_thinking, "settled")


def test_changing_signals_never_settle():
    rule, _ = run(PAPER, [float(i % 2) for i in range(200)])
    assert rule.intervention is None


def test_thinking_is_cut_at_its_budget_even_if_it_changes():
    settings = msgspec.structs.replace(PAPER, max_thinking=30)
    _, decisions = run(settings, [float(i % 2) for i in range(60)])
    at = next(i for i, d in enumerate(decisions) if d)
    assert (at, decisions[at].reason) == (30, "budget")


def test_without_an_epsilon_thinking_is_cut_at_its_budget_and_never_before():
    """Even where nothing changes at all."""
    _, decisions = run(msgspec.structs.replace(PAPER, epsilon=None, max_thinking=30), [1.0] * 60)
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


@pytest.mark.parametrize("begins_inside", [False, True])
def test_rule_knows_where_the_thought_starts(begins_inside: bool) -> None:
    """A thought that the prompt has opened starts at the first token of the response."""
    rule = ThinkingRule(PAPER, make_tags(OPEN, CLOSE, begins_inside=begins_inside))
    tokens = [-1, WORD, OPEN, WORD, CLOSE, WORD]
    for position, previous in enumerate(tokens):
        rule.observe(Signal(position, 1.0, 1.0, -0.5, -1, previous))
    assert (rule.thought_start, rule.thinking) == ((0, 4) if begins_inside else (2, 2))


SPELLED = ThinkTags(opening=((3, 4), (5,)), closing=((6, 7, 8), (6, 7, 9)))


@pytest.mark.parametrize(
    ("tokens", "thinking"),
    [
        ([3, 4, WORD, 6, 7, 8, WORD], 4),
        ([5, WORD, WORD, 6, 7, 9, WORD], 5),
        ([3, WORD, 4, WORD, WORD, WORD, WORD], 0),
        ([5, 6, WORD, 7, 8, 9, WORD], 6),
        ([5, 6, 6, 7, 8, 3, 4, WORD], 4),
    ],
)
def test_rule_finds_tags_of_several_tokens(tokens: list[int], thinking: int) -> None:
    """A thought begins and ends with the last token of a whole tag, in any of its spellings."""
    rule = ThinkingRule(PAPER, SPELLED)
    for position, previous in enumerate([-1, *tokens[:-1]]):
        rule.observe(Signal(position, 1.0, 1.0, -0.5, -1, previous))
    assert rule.thinking == thinking


def test_rule_cuts_no_thought_in_the_middle_of_its_closing_tag() -> None:
    """It waits for what follows: the tag, and then nothing is left to cut, or another word."""
    settings = msgspec.structs.replace(PAPER, max_thinking=3, min_thinking=3)
    for tokens, at in (([5, WORD, 6, 7, 8, WORD, WORD], None), ([5, WORD, 6, WORD, 6, 7], 4)):
        rule = ThinkingRule(settings, SPELLED)
        for position, previous in enumerate([-1, *tokens[:-1]]):
            rule.observe(Signal(position, 1.0, 1.0, -0.5, -1, previous))
        assert (rule.intervention and rule.intervention.position) == at


def test_a_lost_frame_leaves_a_gap_and_no_decision_from_it():
    rule = ThinkingRule(PAPER, make_tags(OPEN, CLOSE))
    rule.observe(Signal(0, 1.0, 1.0, -0.5, -1, -1))
    rule.observe(Signal(3, 2.0, 2.0, -0.5, -1, WORD))
    assert len(rule.scores) == 4 and isnan(rule.scores[1]) and not isnan(rule.scores[3])


@given(signals)
def test_invariant_5_a_recorded_stream_replays_to_the_same_decisions(pairs):
    settings = msgspec.structs.replace(
        PAPER, window=3, epsilon=0.05, min_thinking=4, max_thinking=20
    )
    entropy = [h for h, _ in pairs]
    confidence = [c for _, c in pairs]
    assert run(settings, entropy, confidence)[1] == run(settings, entropy, confidence)[1]


def test_a_repeated_frame_changes_nothing():
    rule = ThinkingRule(PAPER, make_tags(OPEN, CLOSE))
    for _ in range(2):
        rule.observe(Signal(0, 1.0, 1.0, -0.5, -1, -1))
    assert len(rule.scores) == 1


def test_forced_positions_are_remembered():
    rule = ThinkingRule(PAPER, make_tags(OPEN, CLOSE))
    rule.observe(Signal(0, 1.0, 1.0, -0.5, -1, -1))
    rule.observe(Signal(1, 1.0, nan, -0.5, CLOSE, OPEN))
    assert rule.forced == [False, True]


# --- every decision, against the rule written the slow obvious way: all of the turn again at every
# token


def reference_decision(
    settings: ThinkingSettings, signals: list[Signal], begins_inside: bool
) -> tuple[int, str] | None:
    """(Position, reason) of the first token at which thinking is to be cut."""
    scores = reference_scores(settings, signals)
    opened = next((s.position for s in signals if s.previous == OPEN), len(signals))
    if begins_inside:
        opened = 0
    closed = next(
        (s.position for s in signals if s.previous == CLOSE and s.position > opened), len(signals)
    )
    if any(s.previous == CLOSE and s.position < opened for s in signals):
        return None
    for t in range(opened, closed):
        thinking = t - opened + 1
        changes = [abs(scores[i] - scores[i - 1]) for i in range(max(opened, 1), t + 1)]
        last = changes[-settings.window - 1 :]
        if thinking >= settings.max_thinking:
            return t, "budget"
        if thinking < settings.min_thinking or len(last) < settings.window + 1:
            continue
        if settings.epsilon is None:
            continue
        if settings.delta_statistic == "mean" and float(np.mean(last)) < settings.epsilon:
            return t, "settled"
        if settings.delta_statistic == "max" and all(change <= settings.epsilon for change in last):
            return t, "settled"
    return None


def reference_scores(settings: ThinkingSettings, signals: list[Signal]) -> list[float]:
    if settings.score == "paper":
        return reference_uncertainty(
            [s.entropy for s in signals], [s.confidence for s in signals], settings.alpha
        )
    return [
        (1 - settings.alpha) * s.top_log_prob
        + settings.alpha * (1 - s.entropy / np.log(settings.vocabulary))
        for s in signals
    ]


# Halves and whole numbers: equal neighbours are common, so that windows do settle, and sums have no
# rounding.
turns = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        st.sampled_from([0.0, 1.0, 4.0]),
        st.sampled_from([OPEN, CLOSE, *[WORD] * 20]),
    ),
    min_size=1,
    max_size=60,
)


@given(
    turns,
    st.sampled_from(["paper", "code"]),
    st.sampled_from(["mean", "max"]),
    st.integers(0, 5),
    st.sampled_from([None, 1e-4, 0.07, 0.31]),
    st.integers(0, 8),
    st.integers(8, 40),
    st.booleans(),
)
def test_the_rule_decides_as_the_slow_reference(
    turn, score, statistic, window, epsilon, shortest, longest, begins_inside
):
    settings = ThinkingSettings(score, 0.4, 100, statistic, window, epsilon, shortest, longest)
    previous = [-1, OPEN, *(token for *_, token in turn)]
    if begins_inside:
        previous.remove(OPEN)
    signals = [Signal(i, h, c, -c / 3, -1, previous[i]) for i, (h, c, _) in enumerate(turn)]
    rule = ThinkingRule(settings, make_tags(OPEN, CLOSE, begins_inside=begins_inside))
    decisions = [(d.position, d.reason) for d in map(rule.observe, signals) if d is not None]
    expected = reference_decision(settings, signals, begins_inside)
    assert decisions == ([] if expected is None else [expected])


def test_code_of_the_authors_waits_for_twenty_small_changes_in_a_row():
    """Recipe t2po-code cuts after 20 changes in a row of at most 1e-4, as the authors' code does.

    Its score on one sequence is 0.6 log p + 0.4 (1 - H / log V).
    """
    code = ThinkingSettings(
        "code", 0.4, 1000, "max", window=19, epsilon=1e-4, min_thinking=0, max_thinking=450
    )
    calm = [1.0] * 25
    restless = [*calm[:10], 1.5, *calm]
    for entropies, at in ((calm, 20), (restless, 31)):
        _, decisions = run(code, entropies, [0.0] * len(entropies))
        assert [i for i, d in enumerate(decisions) if d] == [at]


def test_a_rule_reaches_the_engine_as_it_was():
    delegated = RuleSpec(PAPER, make_tags(OPEN, CLOSE), [CLOSE, 5])
    assert msgspec.json.decode(msgspec.json.encode(delegated), type=RuleSpec) == delegated
