"""Thresholds that follow a rate."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ControlSection, T2poSection
from controller.rules.calibration import LARGEST, SMALLEST, WARM_UP, Calibration, RateThreshold
from controller.rules.scores import Signal
from controller.rules.thinking import ThinkingRule, ThinkingSettings
from controller.thresholds import Thresholds
from tests.fixtures.messages import make_tags


def share_acted_upon(threshold: RateThreshold, values: list[float]) -> float:
    """Act as the controller does, on each value below the threshold in force."""
    acted = 0
    for value in values:
        act = threshold.value is not None and value < threshold.value
        threshold.observe(value, act)
        acted += act
    return acted / len(values)


def test_nothing_is_acted_upon_during_the_warm_up():
    threshold = RateThreshold(0.5)
    assert share_acted_upon(threshold, [0.1] * WARM_UP) == 0
    assert threshold.value is not None


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("scale", [1e-5, 1.0])
def test_the_share_acted_upon_becomes_the_rate_whatever_the_scale(rate: float, scale: float):
    rng = random.Random(1)
    threshold = RateThreshold(rate)
    share_acted_upon(threshold, [scale * rng.lognormvariate(0, 1) for _ in range(WARM_UP)])
    assert share_acted_upon(
        threshold, [scale * rng.lognormvariate(0, 1) for _ in range(20_000)]
    ) == pytest.approx(rate, rel=0.1)


def test_the_threshold_follows_a_policy_that_becomes_a_hundred_times_surer():
    rng = random.Random(2)
    threshold = RateThreshold(0.05)
    share_acted_upon(threshold, [rng.random() for _ in range(2000)])
    share_acted_upon(threshold, [rng.random() / 100 for _ in range(2000)])
    assert share_acted_upon(
        threshold, [rng.random() / 100 for _ in range(10_000)]
    ) == pytest.approx(0.05, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=600), st.floats(0.01, 0.9))
def test_a_threshold_stays_within_bounds(turns, rate):
    threshold = RateThreshold(rate)
    for value, acted in turns:
        threshold.observe(value, acted)
    assert threshold.value is None or SMALLEST <= threshold.value <= LARGEST
    assert len(threshold.warm_up_values) < WARM_UP


def thinking(settings: ThinkingSettings, entropies: list[float]) -> ThinkingRule:
    rule = ThinkingRule(settings, make_tags(1, 2))
    for i, h in enumerate(entropies):
        rule.observe(Signal(i, h, h, -h, -1, 1 if i == 1 else 9))
    return rule


def settings(epsilon: float | None) -> ThinkingSettings:
    return ThinkingSettings(
        "paper", 0.4, 100, "mean", window=1, epsilon=epsilon, min_thinking=2, max_thinking=50
    )


def test_a_turn_that_thought_too_briefly_does_not_count():
    thresholds = Thresholds(ControlSection())
    thresholds.observe_thinking(thinking(settings(None), [0.5, 0.6]))
    assert thresholds.calibration.epsilon.turns == 0
    thresholds.observe_thinking(thinking(settings(None), [0.5, 0.6, 0.7, 0.5]))
    assert thresholds.calibration.epsilon.turns == 1


def test_a_first_turn_does_not_count():
    thresholds = Thresholds(ControlSection())
    thresholds.observe_turn(None, None, False)
    assert thresholds.calibration.eta.turns == 0


def test_a_turn_that_began_in_the_warm_up_does_not_count_once_it_is_over():
    thresholds = Thresholds(ControlSection(t2po=T2poSection(resample_rate=0.5)))
    for i in range(WARM_UP):
        thresholds.observe_turn(float(i), None, False)
    eta = thresholds.eta
    thresholds.observe_turn(0.0, None, False)
    assert thresholds.eta == eta
    thresholds.observe_turn(0.0, eta, True)
    assert thresholds.eta < eta


def test_without_a_rate_a_threshold_is_fixed():
    thresholds = Thresholds(
        ControlSection(
            t2po=T2poSection(intervention_rate=0, epsilon=0.25, resample_rate=0, eta=0.125)
        )
    )
    for _ in range(2 * WARM_UP):
        thresholds.observe_turn(0.5, 0.125, False)
    assert (thresholds.epsilon, thresholds.eta) == (0.25, 0.125)


@pytest.mark.parametrize(
    ("mode", "cuts", "resamples"),
    [
        ("off", False, False),
        ("void", False, False),
        ("budget", False, False),
        ("t2po-token", True, False),
        ("t2po-turn", False, True),
        ("t2po", True, True),
    ],
)
def test_a_mode_has_only_its_own_thresholds(mode: str, cuts: bool, resamples: bool):
    thresholds = Thresholds(
        ControlSection(mode=mode, t2po=T2poSection(intervention_rate=0, resample_rate=0))
    )
    assert (thresholds.epsilon is not None, thresholds.eta is not None) == (cuts, resamples)


def test_a_resumed_run_goes_on_with_its_thresholds():
    thresholds = Thresholds(ControlSection())
    for i in range(WARM_UP + 3):
        thresholds.observe_turn(float(i), thresholds.eta, False)
    resumed = Thresholds(ControlSection())
    resumed.restore(thresholds.state())
    assert (
        resumed.calibration == thresholds.calibration and resumed.eta == thresholds.eta is not None
    )


def test_a_rate_that_was_changed_begins_anew():
    thresholds = Thresholds(ControlSection())
    for i in range(WARM_UP):
        thresholds.observe_turn(float(i), None, False)
    resumed = Thresholds(ControlSection(t2po=T2poSection(resample_rate=0.2)))
    resumed.restore(thresholds.state())
    assert resumed.calibration.eta == RateThreshold(0.2)


def test_a_run_without_a_calibration_begins_with_none():
    thresholds = Thresholds(ControlSection())
    thresholds.restore(b"")
    assert thresholds.eta is None


def test_a_calibration_survives_json():
    calibration = Calibration(
        RateThreshold(0.05, 0.25, 300, 12), RateThreshold(0.1, None, 2, 0, [0.5, 1.5])
    )
    assert msgspec.json.decode(msgspec.json.encode(calibration), type=Calibration) == calibration
