"""Settings of the control of exploration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from config.section import Section, says

RATES = {
    "control.t2po.epsilon": "control.t2po.intervention_rate",
    "control.t2po.eta": "control.t2po.resample_rate",
}
"""Threshold -> the rate that it follows."""


def rates_of_fixed_thresholds(given: Iterable[str]) -> dict[str, float]:
    """Return {rate: 0} for each threshold that is given while its rate is not: it is to hold."""
    return {
        rate: 0.0 for threshold, rate in RATES.items() if threshold in given and rate not in given
    }


class T2poSection(Section, frozen=True):
    """T2PO: when thinking has settled, and when a turn repeats the state of the one before.

    Where its paper publishes a number, that is the default. `top_j`, `window`, `min_thinking` and
    rates that thresholds follow are ours (docs/measurements/control.md).
    """

    score: Annotated[
        Literal["paper", "code"],
        says(
            "Uncertainty of a token: normalized over the turn so far, or the authors' code's, "
            "not normalized"
        ),
    ] = "paper"
    alpha: Annotated[
        float, says("Weight of entropy against confidence in the score", ge=0, le=1)
    ] = 0.4
    top_j: Annotated[int, says("Tokens whose mean log-prob is the confidence", ge=1)] = 20
    delta_statistic: Annotated[
        Literal["mean", "max"],
        says("Statistic of the score's last changes that is compared with epsilon"),
    ] = "mean"
    window: Annotated[int, says("N: the last N+1 changes of the score are compared", ge=0)] = 7
    intervention_rate: Annotated[
        float,
        says(
            "Share of the turns that think long enough whose thinking is to be cut: epsilon "
            "follows it; 0: epsilon is fixed",
            ge=0,
            lt=1,
        ),
    ] = 0.05
    epsilon: Annotated[
        float, says("Thinking is cut when the score changes less than this", ge=0)
    ] = 1e-4
    min_thinking: Annotated[int, says("L_min: thinking tokens before it may be cut", ge=0)] = 16
    turn_mean: Annotated[
        Literal["geometric", "arithmetic"],
        says("Mean of its tokens' scores that is the score of a turn"),
    ] = "geometric"
    turn_skip: Annotated[
        int, says("Tokens at the start of a turn that its score leaves out", ge=0)
    ] = 0
    resample_rate: Annotated[
        float,
        says(
            "Share of the turns, but for first ones, that are to be sampled again: eta follows "
            "it; 0: eta is fixed",
            ge=0,
            lt=1,
        ),
    ] = 0.05
    eta: Annotated[
        float,
        says(
            "A turn whose score differs less than this from the turn before is sampled again", ge=0
        ),
    ] = 1e-3
    repetition_limit: Annotated[
        int,
        says(
            "Turns in a row with the same text from which on a turn is stalled; 0: no limit", ge=0
        ),
    ] = 8
    early_stall: Annotated[
        float,
        says(
            "Probability of error at which a turn is ended as stalled before it is complete; "
            "0: turns run to their end",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    max_resamples: Annotated[int, says("B_max: times a turn may be sampled again", ge=0)] = 2


class ControlSection(Section, frozen=True):
    """Control of exploration: its mode, its source of signals, and what it costs at most."""

    mode: Annotated[
        Literal["off", "budget", "void", "t2po", "t2po-token", "t2po-turn"],
        says(
            "Exploration control. t2po: T2PO's two levels; t2po-token, t2po-turn: one of them; "
            "budget: thinking is cut at max_thinking alone; void: none, and turns without a "
            "valid action are not trained on; off: none"
        ),
    ] = "t2po"
    signal: Annotated[
        Literal["auto", "tap", "stream"],
        says(
            "Source of uncertainty: exact values by our plugin in the engine; a stream of "
            "log-probs; or auto: the first where it is there"
        ),
    ] = "auto"
    decide_in: Annotated[
        Literal["controller", "engine"],
        says("Process that decides to cut: the controller, a step later, or the engine, at once"),
    ] = "controller"
    max_thinking: Annotated[
        int, says("L_max: thinking tokens at which it is cut in any case", ge=1)
    ] = 450
    on_cut: Annotated[
        Literal["queue", "close"],
        says(
            "Tokens that end a thought: </think> and how the environment's answers go on, up to "
            "the action itself; or </think> alone"
        ),
    ] = "queue"
    t2po: T2poSection = T2poSection()
