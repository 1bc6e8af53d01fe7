"""Effects of settings, all else equal.

Each run of a sweep is set against the one of its seed that differs from it in that setting alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from telemetry.analysis.compare_runs import MEASURES, Settings, replace_setting, run_measures
from telemetry.analysis.intervals import median_interval
from telemetry.sinks.metrics_file import Record

Run = tuple[Mapping[str, str], int, Sequence[Record]]
"""Settings by their short names, seed, what its metrics.jsonl holds."""

Measures = Mapping[str, float]
"""The measures of a run, by name."""


class Change(NamedTuple):
    """How one measure changed, over the pairs of runs that have it.

    Of a share: the difference (0.02: two points); of all else: relative (-0.1: a tenth less).
    """

    median: float
    low: float | None  # 95 % interval of the median; None with fewer than six pairs
    high: float | None
    up: int  # pairs in which it rose
    down: int
    pairs: int


@dataclass(frozen=True)
class Effect:
    """Changes from `base`, the setting's first value in the sweep, to `value`."""

    setting: str
    base: str
    value: str
    changes: dict[str, Change]  # by measure


def compute_effects(runs: Sequence[Run]) -> list[Effect]:
    """An effect for each value but the first of each setting, in their order.

    Those of which there is no pair of runs are left out.
    """
    if not runs:
        return []
    measured = {
        (seed, tuple(settings.items())): run_measures(records) for settings, seed, records in runs
    }
    effects = []
    for setting in runs[0][0]:
        base, *others = dict.fromkeys(settings[setting] for settings, _, _ in runs)
        for value in others:
            pairs = list(_pair_runs(measured, setting, base, value))
            if pairs:
                effects.append(Effect(setting, base, value, _compute_changes(pairs)))
    return effects


def _pair_runs(
    measured: Mapping[tuple[int, Settings], Measures], setting: str, base: str, value: str
) -> Iterator[tuple[Measures, Measures]]:
    """(Measures with `base`, measures with `value`) of runs that differ in nothing else."""
    for (seed, settings), after in measured.items():
        before = measured.get((seed, replace_setting(settings, setting, base)))
        if (setting, value) in settings and before is not None:
            yield before, after


def _compute_changes(pairs: Sequence[tuple[Measures, Measures]]) -> dict[str, Change]:
    changes = {}
    for measure, about in MEASURES.items():
        values = [
            (before[measure], after[measure])
            for before, after in pairs
            if measure in before and measure in after
        ]
        if about.is_share:
            differences = [after - before for before, after in values]
        else:
            differences = [after / before - 1 for before, after in values if before > 0]
        if differences:
            changes[measure] = _summarize_differences(differences)
    return changes


def _summarize_differences(differences: Sequence[float]) -> Change:
    low, high = median_interval(differences) or (None, None)
    up = sum(difference > 0 for difference in differences)
    down = sum(difference < 0 for difference in differences)
    return Change(median(differences), low, high, up, down, len(differences))
