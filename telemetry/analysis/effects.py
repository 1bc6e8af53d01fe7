"""What a setting changes, all else equal: each run of a sweep against the one that differs from it
in that setting alone, of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from telemetry.analysis.compare_runs import MEASURES, run_measures
from telemetry.analysis.intervals import median_interval
from telemetry.sinks.metrics_file import Record

Run = tuple[Mapping[str, str], int, Sequence[Record]]
"""Settings by their short names, seed, what its metrics.jsonl holds."""


class Change(NamedTuple):
    """Of one measure, over the pairs of runs that have it.

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
    """What `value` changes against `base`, the setting's first value in the sweep."""

    setting: str
    base: str
    value: str
    changes: dict[str, Change]  # measure -> what became of it


def compute_effects(runs: Sequence[Run]) -> list[Effect]:
    """An effect for each value but the first of each setting, in their order; without those of
    which there is no pair of runs."""
    measured = {
        (seed, tuple(settings.items())): run_measures(records) for settings, seed, records in runs
    }
    values = {
        name: list(dict.fromkeys(settings[name] for settings, _, _ in runs))
        for name in (runs[0][0] if runs else ())
    }
    found = []
    for setting, (base, *others) in values.items():
        for value in others:
            pairs = [
                (before, after)
                for (seed, key), after in measured.items()
                if (setting, value) in key
                and (before := measured.get((seed, _with(key, setting, base)))) is not None
            ]
            if pairs:
                found.append(Effect(setting, base, value, _changes(pairs)))
    return found


def _with(
    key: tuple[tuple[str, str], ...], setting: str, value: str
) -> tuple[tuple[str, str], ...]:
    return tuple((name, value if name == setting else own) for name, own in key)


def _changes(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, Change]:
    changes = {}
    for measure, about in MEASURES.items():
        both = [
            (before[measure], after[measure])
            for before, after in pairs
            if measure in before and measure in after
        ]
        if about.is_share:
            differences = [after - before for before, after in both]
        else:
            differences = [after / before - 1 for before, after in both if before > 0]
        if differences:
            low, high = median_interval(differences) or (None, None)
            up = sum(d > 0 for d in differences)
            down = sum(d < 0 for d in differences)
            changes[measure] = Change(median(differences), low, high, up, down, len(differences))
    return changes
