"""Runs side by side: a row of measures for each combination of settings, over its seeds.

Pure: of what the runs' metrics.jsonl hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from telemetry.analysis.collapse import has_collapsed
from telemetry.analysis.intervals import wilson_interval
from telemetry.html.report import area_by_tokens
from telemetry.sinks.metrics_file import Record, select_kind

SYNCHRONOUS = ("max_staleness", "0")
"""The setting, by its short name, that others are compared with."""


class Measure(NamedTuple):
    """A column: its title, its format, and what it is."""

    title: str
    shape: str
    says: str

    @property
    def is_share(self) -> bool:
        """Whether it is given in per cent."""
        return "%" in self.shape


MEASURES: dict[str, Measure] = {
    "success": Measure(
        "held-out",
        "{:.1%}",
        "held-out success at the end; interval: Wilson's, 95 %, of all seeds' games",
    ),
    "area": Measure(
        "over tokens",
        "{:.1%}",
        "mean held-out success over the tokens generated for training (area under the curve)",
    ),
    "successes_per_million": Measure(
        "per 10⁶ tokens", "{:.0f}", "training episodes that reached their goal, for 10⁶ tokens"
    ),
    "successes_per_hour": Measure(
        "per hour", "{:.0f}", "the same for an hour of training, by the clock"
    ),
    "pairs_per_thousand": Measure(
        "pairs/1,000",
        "{:.1f}",
        "distinct (state, action) pairs of the whole run, for 1,000 generated tokens",
    ),
    "novel_pairs": Measure(
        "novel", "{:.0%}", "share of a batch's pairs that the run had not seen, mean over updates"
    ),
    "repeated_pairs": Measure(
        "repeated", "{:.1%}", "turns that did again what their episode had done there"
    ),
    "distinct_paths": Measure("paths", "{:.0%}", "distinct sequences of actions in a group"),
    "informative_share": Measure("informative", "{:.0%}", "groups whose returns differ"),
    "gamma_p50": Measure("Γ", "{:.4f}", "median change of a turn's score from the turn before"),
    "flat_thinking": Measure("flat", "{:.0%}", "thinking after the last change of M_t"),
    "wasted": Measure(
        "wasted",
        "{:.1%}",
        "generated tokens that were thrown away: rejected, past a cut, in dropped episodes",
    ),
    "effective_sample_size": Measure("ESS", "{:.3f}", "effective sample size, mean over updates"),
    "token_age_mean": Measure("age", "{:.2f}", "mean age of a trained token, in versions"),
    "seconds_per_update": Measure(
        "s/update", "{:.1f}", "wall time of an update after the first, evaluation aside"
    ),
    "idle_share_engine": Measure("engine idle", "{:.0%}", "time without a turn in any engine"),
    "idle_share_learner": Measure("learner idle", "{:.0%}", "time in which the learner waited"),
}


@dataclass(frozen=True)
class Row:
    """Settings, and what their runs came to."""

    settings: dict[str, str]  # short name -> value
    seeds: int
    values: dict[str, tuple[float, float, float]]  # measure -> (mean, low, high)
    collapsed: int  # seeds that did
    speed_up: float | None = None  # over the synchronous run that differs in nothing else
    ideal: float | None = None  # of that, if generation and training overlapped entirely

    @property
    def reached(self) -> float | None:
        """Share of the ideal speed-up."""
        return self.speed_up / self.ideal if self.speed_up is not None and self.ideal else None


def compare_runs(runs: Sequence[tuple[Mapping[str, str], Sequence[Record]]]) -> list[Row]:
    """A row for each combination of settings among the runs (settings without the seed, records),
    in their order."""
    groups: dict[tuple[tuple[str, str], ...], list[Sequence[Record]]] = {}
    for settings, records in runs:
        groups.setdefault(tuple(settings.items()), []).append(records)
    rows = {key: _row(dict(key), found) for key, found in groups.items()}
    return [_with_speed(row, key, rows, groups) for key, row in rows.items()]


def run_measures(records: Sequence[Record]) -> dict[str, float]:
    """The measures of one run, those that it has."""
    updates = select_kind(records, "update")
    evaluations = select_kind(records, "evaluation")
    last = updates[-1] if updates else {}
    tokens = last.get("training_tokens")
    solved = sum((m.get("success") or 0) * (m.get("episodes") or 0) for m in updates)
    found = {
        "success": evaluations[-1].get("success") if evaluations else None,
        "area": area_by_tokens(updates, evaluations),
        "successes_per_million": 1e6 * solved / tokens if tokens else None,
        "pairs_per_thousand": 1000 * last["known_pairs"] / tokens
        if tokens and last.get("known_pairs") is not None
        else None,
        "wasted": _share_of(updates, ("wasted_tokens", "wasted_dropped"), "generated_tokens"),
        "seconds_per_update": seconds_per_update(records),
    }
    if found["seconds_per_update"]:
        found["successes_per_hour"] = 3600 * solved / len(updates) / found["seconds_per_update"]
    for name in MEASURES:
        values = [m[name] for m in updates if m.get(name) is not None]
        if name not in found and values:
            found[name] = mean(values)
    return {name: value for name, value in found.items() if value is not None}


def seconds_per_update(records: Sequence[Record]) -> float | None:
    """Mean wall time between two updates with no evaluation between them; the first one, which
    waits for everything to warm up, is none of them. None with fewer than two updates."""
    between = [
        b["wall_seconds"] - a["wall_seconds"]
        for a, b in pairwise(records)
        if a["kind"] == b["kind"] == "update"
    ]
    return mean(between) if between else None


def ideal_speed_up(records: Sequence[Record]) -> float | None:
    """(t_gen + t_train) / max(t_gen, t_train), of a synchronous run: the most that overlapping them
    can give. Of the updates that `seconds_per_update` looks at; None without any."""
    updates = [b for a, b in pairwise(records) if a["kind"] == b["kind"] == "update"]
    if not updates:
        return None
    generate = mean(r["seconds_wait"] for r in updates)
    train = mean(r["seconds_train"] + r["seconds_publish"] for r in updates)
    return (generate + train) / max(generate, train) if max(generate, train) else None


def _row(settings: dict[str, str], runs: Sequence[Sequence[Record]]) -> Row:
    each = [run_measures(records) for records in runs]
    evaluations = [select_kind(records, "evaluation") for records in runs]
    values = {}
    for name in MEASURES:
        of_seeds = [measured[name] for measured in each if name in measured]
        if of_seeds:
            values[name] = (mean(of_seeds), min(of_seeds), max(of_seeds))
    games = sum(found[-1].get("episodes") or 0 for found in evaluations if found)
    if "success" in values and games:
        values["success"] = (values["success"][0], *wilson_interval(values["success"][0], games))
    return Row(
        settings, len(runs), values, sum(has_collapsed(found) or False for found in evaluations)
    )


def _with_speed(row: Row, key: tuple, rows: Mapping, groups: Mapping) -> Row:
    name, zero = SYNCHRONOUS
    base = tuple((setting, zero if setting == name else value) for setting, value in key)
    if name not in row.settings or base not in rows:
        return row
    own, other = (r.values.get("seconds_per_update") for r in (row, rows[base]))
    ideals = [ideal for records in groups[base] if (ideal := ideal_speed_up(records)) is not None]
    speed_up = other[0] / own[0] if own and other and own[0] else None
    return Row(
        row.settings,
        row.seeds,
        row.values,
        row.collapsed,
        speed_up,
        mean(ideals) if ideals else None,
    )


def _share_of(updates: Sequence[Record], parts: Sequence[str], of: str) -> float | None:
    whole = sum(m.get(of) or 0 for m in updates)
    return sum(m.get(part) or 0 for m in updates for part in parts) / whole if whole else None
