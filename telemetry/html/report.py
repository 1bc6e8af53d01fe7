"""One HTML file that shows runs: curves, differences of their settings, and episodes.

Pure: from what was read (`RunData`) to the page. Everything is drawn here and inside the file; text
is escaped by the template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from config import Config
from config.options import this_command, values_of
from protocol.messages import DropReason
from telemetry.analysis.collapse import collapse_signs, has_collapsed
from telemetry.analysis.compare_runs import area_by_tokens, mean_or_none
from telemetry.format import format_percent
from telemetry.html.charts import NO_UNIT, Axis, Chart, Series, draw_chart
from telemetry.html.episode_view import EpisodeView
from telemetry.html.headline import Headline, report_headline
from telemetry.metrics_schema import (
    SET_PREFIX,
    find_metric,
    success_interval,
    successes_by_set,
)
from telemetry.sinks.metrics_file import Record, last_wall_seconds, select_kind
from telemetry.sinks.starts_file import Start
from telemetry.state import DROPPED_PREFIX, MIN_EFFECTIVE_SAMPLE_SIZE

TEMPLATES = Path(__file__).with_name("templates")
AROUND = 8
"""Tokens before and after an intervention that are shown."""

LEARNING = (
    "reward",
    "entropy",
    "valid_action_rate",
    "turns",
    "response_tokens",
    "truncated_share",
    "loss",
    "grad_norm",
    "learning_rate",
)
EXPLORATION = (
    "known_pairs",
    "coverage_pairs",
    "coverage_states",
    "novel_pairs",
    "repeated_pairs",
    "repeated_states",
    "first_actions",
    "distinct_paths",
    "informative_share",
    "gamma_p50",
    "flat_thinking",
    "successes_per_million",
)
BY_AGE = ("coverage_pairs", "repeated_pairs", "gamma_p50", "flat_thinking")
STALENESS = (
    "token_age_mean",
    "token_age_max",
    "ratio_p99",
    "effective_sample_size",
    "kl_old",
    "clip_fraction",
    "mismatch_age0",
    "masked_share",
)
CONTROL = (
    "cut_rate",
    "resample_rate",
    "epsilon",
    "eta",
    "wasted_share",
    "thinking_tokens",
    "stalled_share",
)
SPEED = (
    "generated_tokens_per_second",
    "trained_tokens_per_second",
    "idle_share_engine",
    "idle_share_learner",
    "seconds_train",
    "seconds_pause",
    "seconds_wait",
    "seconds_publish",
    "queue_trajectories",
)
DROPS = tuple(f"{DROPPED_PREFIX}{reason}" for reason in DropReason)
TIME_OF_UPDATE = ("seconds_wait", "seconds_train", "seconds_publish")
MOST_TYPES = 8
"""Types of tasks that a chart tells apart; with more there is none."""

LIVE = (
    "reward",
    "entropy",
    "valid_action_rate",
    "coverage_pairs",
    "cut_rate",
    "token_age_mean",
    "effective_sample_size",
    "idle_share_learner",
)
"""Curves of the dashboard, beside success."""

X_AXES = {
    "updates": "updates",
    "tokens": "tokens generated for training",
    "minutes": "minutes since the start",
}
"""Choice of the page -> label of the x-axis."""

TYPE_PREFIX = "success/"
"""Begin of the names of an evaluation's success in each type of task."""

PLACES = ("run.dir", "run.cache_dir")
"""Settings that only say where a run writes."""

UNIT_WORDS = {"1": NO_UNIT, "share": "%"}
"""Unit of a metric -> what stands at its axis; others stand as they are."""

SUCCESS_HELP = (
    "Share of episodes that reached their goal: dots are evaluations on held-out tasks with their "
    "95 % intervals (faint ones on further sets), the faint line without dots is training."
)

XAxis = Callable[[Record], float | None]


class DerivedMetric:
    """A number that a chart computes from a record: a part, for each of what it is a part of."""

    def __init__(self, title: str, unit: str, description: str, part: str, whole: str = "") -> None:
        self.title = title
        self.unit = unit
        self.description = description
        self._part = part
        self._whole = whole

    def value(self, record: Record) -> float | None:
        """The value in an update's record; None where it is not known."""
        part = record.get(self._part)
        total = record.get(self._whole) if self._whole else _turns(record)
        if part is None or not total:
            return None
        return part / total


DERIVED = {
    "cut_rate": DerivedMetric(
        "thinking cut", "share", "Turns in which control ended the thinking", "interventions"
    ),
    "resample_rate": DerivedMetric(
        "attempts rejected",
        "attempts a turn",
        "Responses that were thrown away and sampled again",
        "resamples",
    ),
    "wasted_share": DerivedMetric(
        "tokens wasted",
        "share",
        "Generated tokens that were thrown away",
        "wasted_tokens",
        "generated_tokens",
    ),
}


@dataclass(frozen=True)
class RunData:
    """All that is known of a run."""

    name: str
    records: list[Record]  # of metrics.jsonl
    settings: dict[str, Any]  # full name -> value
    interventions: list[list[float | None]] = field(default_factory=list)
    """M_t from AROUND tokens before to AROUND after, of each intervention that was looked at.

    None stands where there is no token or no signal.
    """
    episodes: list[EpisodeView] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)  # of summary.json; empty without one
    status: dict[str, Any] = field(default_factory=dict)  # of status.json, while it goes on
    directory: str = ""  # as commands take it; empty: that of its name
    starts: list[Start] = field(default_factory=list)  # how it was started, and resumed

    @property
    def updates(self) -> list[Record]:
        return select_kind(self.records, "update")

    @property
    def evaluations(self) -> list[Record]:
        return select_kind(self.records, "evaluation")

    @property
    def headline(self) -> Headline:
        return report_headline(self.directory or self.name, self.summary, self.status, self.records)


def render_report(runs: Sequence[RunData]) -> str:
    """The page."""
    learning = [draw_success(runs), *draw_types(runs), *_draw_metrics(runs, LEARNING)]
    control = [*_draw_metrics(runs, CONTROL), *draw_interventions(runs)]
    sections = [
        ("Learning", "learning", learning),
        ("Exploration", "exploration", _draw_metrics(runs, EXPLORATION)),
        ("Exploration by the age of tokens", "ages", draw_ages(runs)),
        ("Staleness and correction", "staleness", _draw_metrics(runs, STALENESS)),
        ("Control", "control", control),
        ("Speed", "speed", [*draw_time(runs), *_draw_metrics(runs, SPEED)]),
        ("Dropped episodes", "drops", _draw_metrics(runs, DROPS)),
    ]
    template = build_templates().get_template("report.html")
    rows = [summary_row(run) for run in runs]
    states = Counter(row["state"] for row in rows)
    return template.render(
        runs=runs,
        rows=rows,
        x_axes=list(X_AXES),
        states=", ".join(f"{count} {state}" for state, count in states.items()),
        sections=[section for section in sections if section[2]],
        differences=differing_settings(runs),
        abouts=[(run.name, describe_run(run)) for run in runs],
        changes=changed_settings(runs[0]) if len(runs) == 1 else [],
        settings=list(runs[0].settings.items()) if len(runs) == 1 else [],
        episodes=[(run.name, episode) for run in runs for episode in run.episodes],
    )


def render_dashboard() -> str:
    """The page that shows a run that goes on; its numbers come from the controller."""
    template = build_templates().get_template("dashboard.html")
    return template.render(x_axes=list(X_AXES), this_command=this_command())


def render_live_charts(records: Sequence[Record]) -> Markup:
    """The main curves of a run that goes on, as a fragment; empty before the first point."""
    if not records:
        return Markup("")
    run = [RunData("the run", list(records), {})]
    return Markup("").join([draw_success(run), *_draw_metrics(run, LIVE)])


def build_templates() -> jinja2.Environment:
    """The pages' templates; whatever is not marked as HTML is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def draw_success(runs: Sequence[RunData]) -> Markup:
    """Held-out success (dots) and that of training."""
    axes = []
    for choice, (key, label) in enumerate(X_AXES.items()):
        series = []
        for color, run in enumerate(runs):
            x_of = _x_axis(run, key)
            training = _points(run.updates, x_of, _value_of("success"))
            held_out = _points(run.evaluations, x_of, _value_of("success"))
            series.append(Series(f"{run.name}, training", training, color, faint=True))
            bars = _intervals(run.evaluations, x_of)
            name = f"{run.name}, held-out"
            series.append(Series(name, held_out, color, dots=True, intervals=bars))
            series += _series_of_sets(run, x_of, color + len(runs))
        axes.append(Axis(label, series, choice=choice))
    return draw_chart(Chart("Success", axes, "%", SUCCESS_HELP, share=True, large=True))


def _series_of_sets(run: RunData, x_of: XAxis, first_color: int) -> list[Series]:
    """Success of the named sets but the first one, which is the run's."""
    last = run.evaluations[-1] if run.evaluations else {}
    others = list(successes_by_set(last))[1:]
    return [
        Series(
            f"{run.name}, {name}",
            _points(run.evaluations, x_of, _value_of(f"{SET_PREFIX}{name}/success")),
            color,
            faint=True,
            dots=True,
        )
        for color, name in enumerate(others, first_color)
    ]


def draw_types(runs: Sequence[RunData]) -> list[Markup]:
    """Held-out success of each type of task, of a run that has several."""
    names = sorted({key for run in runs for record in run.evaluations for key in record})
    names = [name for name in names if name.startswith(TYPE_PREFIX)]
    if len(runs) > 1 or not 1 < len(names) <= MOST_TYPES:
        return []
    run = runs[0]
    axes = [
        Axis(
            label,
            [
                Series(
                    name.removeprefix(TYPE_PREFIX),
                    _points(run.evaluations, _x_axis(run, key), _value_of(name)),
                    color,
                    dots=True,
                )
                for color, name in enumerate(names)
            ],
            choice=choice,
        )
        for choice, (key, label) in enumerate(X_AXES.items())
    ]
    help_text = "Share of held-out tasks of each type that were solved."
    chart = Chart("Success by type of task", axes, "%", help_text, share=True, legend=True)
    return [draw_chart(chart)]


def draw_time(runs: Sequence[RunData]) -> list[Markup]:
    """Show where the learner's time of an update goes, of a single run."""
    if len(runs) > 1 or not any(TIME_OF_UPDATE[0] in update for update in runs[0].updates):
        return []
    run = runs[0]
    axes = [
        Axis(
            label,
            [
                Series(
                    name.removeprefix("seconds_"),
                    _points(run.updates, _x_axis(run, key), _value_of(name)),
                    color,
                )
                for color, name in enumerate(TIME_OF_UPDATE)
            ],
            choice=choice,
        )
        for choice, (key, label) in enumerate(X_AXES.items())
    ]
    help_text = "Seconds that the learner waits for a batch, trains on it, and hands weights out."
    return [draw_chart(Chart("time of an update", axes, "s", help_text, legend=True))]


def describe_run(run: RunData) -> list[tuple[str, list[str]]]:
    """(What, its lines) of where a run comes from: commands, dates, machine, versions."""
    if not run.starts:
        return []
    last = run.starts[-1]
    machine = f"{last.host}: {last.cores} cores, {last.memory_bytes / 2**30:.1f} GiB free memory"
    gpus = [f"{count} x {gpu}" for gpu, count in Counter(last.gpus).items()]
    versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
    rows = [
        ("started", [start.time for start in run.starts]),
        ("command", [start.command for start in run.starts]),
        ("recipes", [", ".join(last.recipes) or "none"]),
        ("machine", [machine, last.system, *gpus]),
        ("versions", [versions]),
    ]
    changes = [f"{start.time}: {start.changes}" for start in run.starts if start.changes]
    if changes:
        rows.append(("resumed with", changes))
    return rows


def changed_settings(run: RunData) -> list[tuple[str, Any, Any]]:
    """(Setting, its value, the default) of each that is not at its default."""
    defaults = values_of(Config())
    return [
        (name, value, defaults.get(name, ""))
        for name, value in run.settings.items()
        if name not in PLACES and value != defaults.get(name)
    ]


def draw_ages(runs: Sequence[RunData]) -> list[Markup]:
    """Measures of exploration by the age of turns, where there are several ages.

    Each point is the mean over a run's updates that have turns of that age.
    """
    charts = []
    for name in BY_AGE:
        series = [
            Series(run.name, _means_by_age(run.updates, name), color, dots=True)
            for color, run in enumerate(runs)
        ]
        if any(one.points for one in series):
            charts.append(draw_chart(_metric_chart(name, [Axis("versions old", series)])))
    return charts


def draw_interventions(runs: Sequence[RunData]) -> list[Markup]:
    """Mean M_t around interventions, where there are any."""
    series = []
    for color, run in enumerate(runs):
        points = []
        for offset, column in enumerate(zip(*run.interventions, strict=True), -AROUND):
            mean = mean_or_none([value for value in column if value is not None])
            if mean is not None:
                points.append((offset, mean))
        name = f"{run.name} ({len(run.interventions)} cuts)"
        series.append(Series(name, points, color, dots=True))
    if not any(one.points for one in series):
        return []
    axis = Axis("tokens after the decision", series, [(0.0, "the decision")])
    help_text = "How uncertain the policy was around the places where its thinking was cut."
    return [draw_chart(Chart("Mean M_t around a cut", [axis], NO_UNIT, help_text))]


def summary_row(run: RunData) -> dict[str, Any]:
    """A run's row in the table."""
    updates = run.updates
    evaluations = run.evaluations
    first = evaluations[0] if evaluations else {}
    last = evaluations[-1] if evaluations else {}
    per_million = [update.get("successes_per_million") for update in updates]
    signs = collapse_signs(
        updates, run.settings.get("learner.min_effective_sample_size", MIN_EFFECTIVE_SAMPLE_SIZE)
    )
    return {
        "name": run.name,
        "state": run.headline.state,
        "updates": len(updates),
        "tokens": updates[-1].get("training_tokens") if updates else None,
        "minutes": last_wall_seconds(run.records) / 60,
        "first": first.get("success"),
        "last": last.get("success"),
        "sets": ", ".join(
            f"{name} {format_percent(success)}" for name, success in successes_by_set(last).items()
        ),
        "interval": success_interval(last),
        "area": area_by_tokens(updates, evaluations),
        "per_million": mean_or_none([value for value in per_million if value is not None]),
        "collapsed": {True: "yes", False: "no", None: "not known"}[has_collapsed(evaluations)],
        "signs": "; ".join(f"{name}: {numbers}" for name, numbers in signs.items()),
    }


def differing_settings(runs: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """(Setting, its value in each run), where runs differ; where they write is left out."""
    differing = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [run.settings.get(name, "") for run in runs]
        if name not in PLACES and any(value != values[0] for value in values):
            differing.append((name, values))
    return differing


def _draw_metrics(runs: Sequence[RunData], names: Sequence[str]) -> list[Markup]:
    """A chart of each metric that a run has, over all x-axes."""
    charts = []
    for name in names:
        value_of = DERIVED[name].value if name in DERIVED else _value_of(name)
        axes = []
        for choice, (key, label) in enumerate(X_AXES.items()):
            series = [
                Series(run.name, _points(run.updates, _x_axis(run, key), value_of), color)
                for color, run in enumerate(runs)
            ]
            axes.append(Axis(label, series, choice=choice))
        if any(one.points for one in axes[0].series):
            charts.append(draw_chart(_metric_chart(name, axes)))
    return charts


def _metric_chart(name: str, axes: Sequence[Axis]) -> Chart:
    metric = DERIVED.get(name) or find_metric(name)
    title = name.replace("_", " ")
    if name in DERIVED:
        title = DERIVED[name].title
    if metric is None:
        return Chart(title, axes)
    unit = UNIT_WORDS.get(metric.unit, metric.unit)
    return Chart(title, axes, unit, metric.description, share=metric.unit == "share")


def _x_axis(run: RunData, key: str) -> XAxis:
    """The place of a record on an x-axis; an evaluation has the tokens of the update before."""
    if key == "updates":
        return lambda record: record["update"]
    if key == "minutes":
        return lambda record: record["wall_seconds"] / 60
    tokens = {update["update"]: update.get("training_tokens") for update in run.updates} | {0: 0}
    return lambda record: tokens.get(record["update"])


def _value_of(name: str) -> XAxis:
    return lambda record: record.get(name)


def _points(records: Sequence[Record], x_of: XAxis, y_of: XAxis) -> list[tuple[float, float]]:
    points = [(x_of(record), y_of(record)) for record in records]
    return [(x, y) for x, y in points if x is not None and y is not None]


def _intervals(evaluations: Sequence[Record], x_of: XAxis) -> list[tuple[float, float, float]]:
    """(x, low, high) of the 95 % interval of each evaluation's success."""
    bars = []
    for record in evaluations:
        x = x_of(record)
        interval = success_interval(record)
        if x is not None and interval is not None:
            bars.append((x, *interval))
    return bars


def _means_by_age(updates: Sequence[Record], name: str) -> list[tuple[float, float]]:
    values_by_age: dict[int, list[float]] = {}
    for update in updates:
        for key, value in update.items():
            head, _, age = key.partition("/age")
            if head == name and age.isdecimal() and value is not None:
                values_by_age.setdefault(int(age), []).append(value)
    return [(age, sum(values) / len(values)) for age, values in sorted(values_by_age.items())]


def _turns(record: Mapping[str, Any]) -> float | None:
    """Turns of the update's batch."""
    turns = record.get("turns")
    episodes = record.get("episodes")
    if not turns or not episodes:
        return None
    return turns * episodes
