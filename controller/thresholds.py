"""The thresholds in force: fixed ones, or those that follow a rate.

A resumed run goes on with the latter.
"""

from __future__ import annotations

import msgspec

from config import ControlSection
from controller.rules.calibration import Calibration, RateThreshold
from controller.rules.thinking import ThinkingRule

CUT_BY_EPSILON = ("t2po", "t2po-token")
"""Modes of control that cut thinking below epsilon."""
RESAMPLED_BY_ETA = ("t2po", "t2po-turn")
"""Modes of control that sample stalled turns again."""


class Thresholds:
    """Epsilon and eta, by `control`.

    One instance a controller, since a rate is of all its turns.
    """

    def __init__(self, control: ControlSection) -> None:
        self._control = control
        self.calibration = Calibration(
            RateThreshold(control.t2po.intervention_rate), RateThreshold(control.t2po.resample_rate)
        )

    @property
    def epsilon(self) -> float | None:
        """Threshold below which a change of the score cuts thinking.

        None where nothing is to be cut but at L_max, or not yet.
        """
        if self._control.mode not in CUT_BY_EPSILON:
            return None
        return _in_force(self._control.t2po.epsilon, self.calibration.epsilon)

    @property
    def eta(self) -> float | None:
        """Threshold below which a change of a turn's score is a stall.

        None where nothing is to be sampled again, or not yet.
        """
        if self._control.mode not in RESAMPLED_BY_ETA:
            return None
        return _in_force(self._control.t2po.eta, self.calibration.eta)

    def observe_thinking(self, rule: ThinkingRule) -> None:
        """Take note of a turn of training that has ended, steered or not."""
        if rule.min_statistic is None:
            return
        settled = rule.intervention is not None and rule.intervention.reason == "settled"
        _observe(self.calibration.epsilon, rule.min_statistic, settled, rule.settings.epsilon)

    def observe_turn(self, gamma: float | None, eta: float | None, is_stalled: bool) -> None:
        """Take note of the first sample of a turn: how much its score changed, and the eta then.

        `gamma` is None where there was no turn before.
        """
        if gamma is not None:
            _observe(self.calibration.eta, gamma, is_stalled, eta)

    def state(self) -> bytes:
        """Encode the calibration, for a checkpoint."""
        return msgspec.json.encode(self.calibration)

    def restore(self, state: bytes) -> None:
        """Go on with the calibration of a checkpoint.

        Rates that were changed since begin anew; so does everything from an empty state.
        """
        if not state:
            return
        saved = msgspec.json.decode(state, type=Calibration)
        if saved.epsilon.rate == self.calibration.epsilon.rate:
            self.calibration.epsilon = saved.epsilon
        if saved.eta.rate == self.calibration.eta.rate:
            self.calibration.eta = saved.eta


def _in_force(fixed: float, following: RateThreshold) -> float | None:
    if following.rate == 0:
        return fixed
    return following.value


def _observe(
    threshold: RateThreshold, value: float, acted: bool, threshold_then: float | None
) -> None:
    """Feed a value to its threshold.

    A turn that began in the warm-up, when nothing was acted upon, says nothing once that is over.
    """
    if threshold.value is None or threshold_then is not None:
        threshold.observe(value, acted)
