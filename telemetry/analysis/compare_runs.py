"""Runs side by side: a row of measures for each combination of settings, over its seeds.

Pure: of what the runs' metrics.jsonl hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from telemetry.analysis.collapse import has_collapsed
from telemetry.analysis.intervals import wilson_interval
from telemetry.sinks.metrics_file import Record, select_kind

SYNCHRONOUS = ("max_staleness", "0")
"""The setting, by its short name, that others are compared with."""

TIMES = ("seconds_wait", "seconds_train", "seconds_publish")
"""Seconds of an update that add up to nearly all of it."""


class Measure(NamedTuple):
    """A column: its title, the format of its numbers, and what it is."""

    title: str
    number_format: str
    description: str
    unit: str = "no unit"

    @property
    def is_share(self) -> bool:
        """True for one that is given in per cent."""
        return "%" in self.number_format

    def format(self, value: float) -> str:
        """The value as the column shows it."""
        return self.number_format.format(value)


MEASURES: dict[str, Measure] = {
    "success": Measure(
        "held-out",
        "{:.1%}",
        "held-out success at the end; interval: Wilson's, 95 %, of all seeds' tasks",
    ),
    "area": Measure(
        "over tokens",
        "{:.1%}",
        "mean held-out success over the tokens generated for training (area under the curve)",
    ),
    "successes_per_million": Measure(
        "per 10⁶ tokens",
        "{:.0f}",
        "training episodes that reached their goal, for 10⁶ tokens",
        "episodes / 10⁶ tokens",
    ),
    "successes_per_hour": Measure(
        "per hour",
        "{:.0f}",
        "training episodes that reached their goal, for an hour of training by the clock",
        "episodes / h",
    ),
    "pairs_per_thousand": Measure(
        "pairs/1,000",
        "{:.1f}",
        "distinct (state, action) pairs of the whole run, for 1,000 generated tokens",
        "pairs / 1,000 tokens",
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
    "token_age_mean": Measure(
        "age", "{:.2f}", "mean age of a trained token, in versions", "versions"
    ),
    "seconds_per_update": Measure(
        "s/update", "{:.1f}", "wall time of an update after the first, evaluation aside", "s"
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
        if self.speed_up is None or not self.ideal:
            return None
        return self.speed_up / self.ideal


Settings = tuple[tuple[str, str], ...]
"""(Short name, value) of each setting, which is what rows are told apart by."""


def compare_runs(runs: Sequence[tuple[Mapping[str, str], Sequence[Record]]]) -> list[Row]:
    """A row for each combination of settings, in the runs' order.

    A run is its settings without the seed, and its records.
    """
    groups: dict[Settings, list[Sequence[Record]]] = {}
    for settings, records in runs:
        groups.setdefault(tuple(settings.items()), []).append(records)
    rows = {key: _build_row(dict(key), of_seeds) for key, of_seeds in groups.items()}
    return [_add_speed_up(row, key, rows, groups) for key, row in rows.items()]


def run_measures(records: Sequence[Record]) -> dict[str, float]:
    """The measures of one run, those that it has."""
    updates = select_kind(records, "update")
    measures: dict[str, float | None] = {}
    for name in MEASURES.keys() - {"success"}:
        values = [record[name] for record in updates if record.get(name) is not None]
        measures[name] = mean_or_none(values)
    evaluations = select_kind(records, "evaluation")
    if evaluations:
        measures["success"] = evaluations[-1].get("success")
    measures["area"] = area_by_tokens(updates, evaluations)
    measures["wasted"] = _wasted_share(updates)
    measures |= _measures_by_cost(updates, seconds_per_update(records))
    return {name: value for name, value in measures.items() if value is not None}


def area_by_tokens(updates: Sequence[Record], evaluations: Sequence[Record]) -> float | None:
    """Sample efficiency: mean held-out success over the tokens generated for training.

    It is taken between the first evaluation and the last, with straight lines between evaluations;
    None with fewer than two.
    """
    tokens = {record["update"]: record.get("training_tokens") for record in updates} | {0: 0}
    points = []
    for record in evaluations:
        x = tokens.get(record["update"])
        y = record.get("success")
        if x is not None and y is not None:
            points.append((x, y))
    if len(points) < 2 or points[-1][0] == points[0][0]:
        return None
    parts = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points)]
    return sum(parts) / (points[-1][0] - points[0][0])


def seconds_per_update(records: Sequence[Record]) -> float | None:
    """Mean wall time between two updates with no evaluation between them.

    The first update, which waits for everything to warm up, is none of them. None with fewer than
    two updates.
    """
    seconds = [
        after["wall_seconds"] - before["wall_seconds"] for before, after in _steady_pairs(records)
    ]
    return mean_or_none(seconds)


def ideal_speed_up(records: Sequence[Record]) -> float | None:
    """The most that overlapping generation and training can give a synchronous run.

    That is (t_gen + t_train) / max(t_gen, t_train), of the updates that `seconds_per_update` looks
    at, those that have all times; None without any.
    """
    updates = [
        after
        for _, after in _steady_pairs(records)
        if all(after.get(name) is not None for name in TIMES)
    ]
    if not updates:
        return None
    generate = mean(record["seconds_wait"] for record in updates)
    train = mean(record["seconds_train"] + record["seconds_publish"] for record in updates)
    longer = max(generate, train)
    if not longer:
        return None
    return (generate + train) / longer


def _steady_pairs(records: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    """Neighbors among the records that are both updates."""
    for before, after in pairwise(records):
        if before["kind"] == after["kind"] == "update":
            yield before, after


def _measures_by_cost(updates: Sequence[Record], seconds: float | None) -> dict[str, float | None]:
    """Successes and pairs for what they cost; `seconds` is the time of an update."""
    measures: dict[str, float | None] = {"seconds_per_update": seconds}
    solved = sum((m.get("success") or 0) * (m.get("episodes") or 0) for m in updates)
    if seconds:
        measures["successes_per_hour"] = 3600 * solved / len(updates) / seconds
    last = updates[-1] if updates else {}
    tokens = last.get("training_tokens")
    measures["successes_per_million"] = None  # not the mean of the updates' own
    known_pairs = last.get("known_pairs")
    if tokens:
        measures["successes_per_million"] = 1e6 * solved / tokens
    if tokens and known_pairs is not None:
        measures["pairs_per_thousand"] = 1000 * known_pairs / tokens
    return measures


def _wasted_share(updates: Sequence[Record]) -> float | None:
    generated = _sum_of(updates, "generated_tokens")
    if not generated:
        return None
    return (_sum_of(updates, "wasted_tokens") + _sum_of(updates, "wasted_dropped")) / generated


def _sum_of(records: Sequence[Record], name: str) -> float:
    return sum(record.get(name) or 0 for record in records)


def mean_curves(
    runs: Sequence[tuple[Mapping[str, str], Sequence[Record]]],
) -> dict[str, list[tuple[float, float, float, float]]]:
    """{settings in words: (update, mean, lowest, highest)} of held-out success over seeds.

    An update counts once all seeds were evaluated there.
    """
    groups: dict[str, list[dict[float, float]]] = {}
    for settings, records in runs:
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        evaluations = select_kind(records, "evaluation")
        shares = {record["update"]: record.get("success") for record in evaluations}
        known = {update: share for update, share in shares.items() if share is not None}
        groups.setdefault(words, []).append(known)
    curves = {}
    for words, seeds in groups.items():
        common = sorted(set.intersection(*map(set, seeds)))
        columns = [(update, [seed[update] for seed in seeds]) for update in common]
        curves[words] = [
            (update, mean(values), min(values), max(values)) for update, values in columns
        ]
    return curves


def _build_row(settings: dict[str, str], runs: Sequence[Sequence[Record]]) -> Row:
    measures_of_runs = [run_measures(records) for records in runs]
    values = {}
    for name in MEASURES:
        of_seeds = [measures[name] for measures in measures_of_runs if name in measures]
        if of_seeds:
            values[name] = (mean(of_seeds), min(of_seeds), max(of_seeds))
    evaluations_of_runs = [select_kind(records, "evaluation") for records in runs]
    tasks = sum(
        evaluations[-1].get("tasks") or 0 for evaluations in evaluations_of_runs if evaluations
    )
    if "success" in values and tasks:
        success = values["success"][0]
        values["success"] = (success, *wilson_interval(success, tasks))
    collapsed = sum(bool(has_collapsed(evaluations)) for evaluations in evaluations_of_runs)
    return Row(settings, len(runs), values, collapsed)


def _add_speed_up(
    row: Row,
    key: Settings,
    rows: Mapping[Settings, Row],
    groups: Mapping[Settings, Sequence[Sequence[Record]]],
) -> Row:
    """The row with its speed-up over the synchronous run that differs in nothing else."""
    name, zero = SYNCHRONOUS
    synchronous = replace_setting(key, name, zero)
    if name not in row.settings or synchronous not in rows:
        return row
    seconds = row.values.get("seconds_per_update")
    synchronous_seconds = rows[synchronous].values.get("seconds_per_update")
    speed_up = None
    if seconds and synchronous_seconds and seconds[0]:
        speed_up = synchronous_seconds[0] / seconds[0]
    ideals = [ideal_speed_up(records) for records in groups[synchronous]]
    ideal = mean_or_none([ideal for ideal in ideals if ideal is not None])
    return replace(row, speed_up=speed_up, ideal=ideal)


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean of the values; None without any."""
    if not values:
        return None
    return mean(values)


def replace_setting(settings: Settings, name: str, value: str) -> Settings:
    """The settings with another value of one of them."""
    return tuple((key, value if key == name else known) for key, known in settings)
