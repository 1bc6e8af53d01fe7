"""The thresholds in force: fixed ones, or those that follow a rate, which a resumed run goes on
with."""

from __future__ import annotations

import msgspec

from config import ControlSection
from controller.rules.calibration import Calibration, RateThreshold
from controller.rules.thinking import NEVER, ThinkingRule


class Thresholds:
    """Epsilon and eta, by `control`.

    One instance a controller, since a rate is of all its turns.
    """

    def __init__(self, control: ControlSection) -> None:
        self._control = control
        self.calibration = Calibration(
            RateThreshold(control.intervention_rate), RateThreshold(control.resample_rate)
        )

    @property
    def epsilon(self) -> float:
        """Changes of the score below it cut thinking.

        NEVER where nothing is to be cut but at L_max, or not yet.
        """
        if self._control.mode not in ("t2po", "t2po-token"):
            return NEVER
        return self._in_force(self._control.epsilon, self.calibration.epsilon)

    @property
    def eta(self) -> float:
        """Changes of a turn's score below it are stalls.

        NEVER where nothing is to be sampled again, or not yet.
        """
        if self._control.mode not in ("t2po", "t2po-turn"):
            return NEVER
        return self._in_force(self._control.eta, self.calibration.eta)

    def observe_thinking(self, rule: ThinkingRule) -> None:
        """A turn that was trained for, steered or not, has ended."""
        settled = rule.intervention is not None and rule.intervention.reason == "settled"
        if rule.lowest < float("inf"):
            _observe(self.calibration.epsilon, rule.lowest, settled, rule.settings.epsilon)

    def observe_turn(self, gamma: float, eta: float, stalled: bool) -> None:
        """The first sample of a turn changed by `gamma` (NaN: there was no turn before), when `eta`
        was in force."""
        if gamma == gamma:
            _observe(self.calibration.eta, gamma, stalled, eta)

    def _in_force(self, fixed: float, followed: RateThreshold) -> float:
        if followed.rate == 0:
            return fixed
        return NEVER if followed.value is None else followed.value

    def state(self) -> bytes:
        """The calibration, for a checkpoint."""
        return msgspec.json.encode(self.calibration)

    def restore(self, state: bytes) -> None:
        """Go on with the calibration of a checkpoint.

        Rates that were changed since begin anew; so does everything from an empty state.
        """
        if not state:
            return
        saved = msgspec.json.decode(state, type=Calibration)
        for name in ("epsilon", "eta"):
            if getattr(saved, name).rate == getattr(self.calibration, name).rate:
                setattr(self.calibration, name, getattr(saved, name))


def _observe(threshold: RateThreshold, value: float, acted: bool, in_force: float) -> None:
    """A turn that began in the warm-up, when nothing was acted upon, says nothing once that is
    over."""
    if threshold.value is None or in_force != NEVER:
        threshold.observe(value, acted)
