"""One HTML file that shows runs: curves, exploration, staleness, control, speed, differences of
their settings, and episodes.

Pure: from what was read (`RunData`) to the page. Everything is drawn here and inside the file; text
is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from telemetry.analysis.collapse import collapse_signs, has_collapsed
from telemetry.analysis.compare_runs import area_by_tokens
from telemetry.analysis.intervals import wilson_interval
from telemetry.html.charts import Series, line_chart
from telemetry.html.episode_view import EpisodeView
from telemetry.metrics_schema import find_metric
from telemetry.sinks.metrics_file import Record, last_wall_seconds, select_kind
from telemetry.state import MIN_EFFECTIVE_SAMPLE_SIZE

TEMPLATES = Path(__file__).with_name("templates")
AROUND = 8
"""Tokens before and after an intervention that are shown."""

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
STALENESS = (
    "token_age_mean",
    "token_age_max",
    "ratio_p99",
    "effective_sample_size",
    "kl_old",
    "clip_fraction",
)
CONTROL = ("cut_rate", "resample_rate", "epsilon", "eta", "wasted_share", "thinking_tokens")
LEARNING = (
    "entropy",
    "grad_norm",
    "valid_action_rate",
    "turns",
    "response_tokens",
    "learning_rate",
)
SPEED = (
    "generated_tokens_per_second",
    "trained_tokens_per_second",
    "idle_share_engine",
    "idle_share_learner",
    "seconds_train",
    "seconds_pause",
)
LIVE = (
    "entropy",
    "valid_action_rate",
    "coverage_pairs",
    "cut_rate",
    "token_age_mean",
    "effective_sample_size",
    "idle_share_learner",
)
DERIVED: dict[str, tuple[str, Callable[[Record], float | None]]] = {
    "cut_rate": (
        "Thinking cut, share of turns",
        lambda m: _over(m.get("interventions"), _turns(m)),
    ),
    "resample_rate": (
        "Attempts rejected, per turn",
        lambda m: _over(m.get("resamples"), _turns(m)),
    ),
    "wasted_share": (
        "Wasted, of the generated tokens",
        lambda m: _over(m.get("wasted_tokens"), m.get("generated_tokens")),
    ),
}
"""Name -> (title, value in an update's record)."""


@dataclass(frozen=True)
class RunData:
    """What is known of a run."""

    name: str
    records: list[Record]  # of metrics.jsonl
    settings: dict[str, Any]  # full name -> value
    interventions: list[list[float]] = field(default_factory=list)
    """M_t from AROUND tokens before to AROUND after, of each intervention that was looked at; NaN
    where there is none."""
    episodes: list[EpisodeView] = field(default_factory=list)

    @property
    def updates(self) -> list[Record]:
        return select_kind(self.records, "update")

    @property
    def evaluations(self) -> list[Record]:
        return select_kind(self.records, "evaluation")


def render_report(runs: Sequence[RunData]) -> str:
    """The page."""
    sections = [
        ("Learning", "learning", [*success_charts(runs), *_by_update(runs, LEARNING)]),
        ("Exploration", "exploration", _by_update(runs, EXPLORATION)),
        ("By the age of tokens", "ages", age_charts(runs)),
        ("Staleness and correction", "staleness", _by_update(runs, STALENESS)),
        ("Control", "control", [*_by_update(runs, CONTROL), *intervention_chart(runs)]),
        ("Speed", "speed", _by_update(runs, SPEED)),
    ]
    return (
        templates()
        .get_template("report.html")
        .render(
            runs=runs,
            rows=[summary_row(run) for run in runs],
            sections=sections,
            differences=differing_settings(runs),
            episodes=[(run.name, view) for run in runs for view in run.episodes],
        )
    )


def render_live_charts(records: Sequence[Record]) -> Markup:
    """The main curves of a run that goes on, as a fragment."""
    run = [RunData("the run", list(records), {})]
    return Markup("").join([*success_charts(run), *_by_update(run, LIVE)])


def templates() -> jinja2.Environment:
    """The pages' templates; whatever is not marked as HTML is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def success_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Held-out success (dots) and that of training, by updates, tokens and minutes."""
    axes: list[tuple[str, Callable[[Record], float | None]]] = [
        ("updates", lambda m: m["update"]),
        ("tokens generated for training", lambda m: m.get("training_tokens")),
        ("minutes", lambda m: m["wall_seconds"] / 60),
    ]
    charts = []
    for label, value in axes:
        series = []
        for colour, run in enumerate(runs):
            training = [(value(m), m["success"]) for m in run.updates]
            at = (
                {m["update"]: value(m) for m in run.updates} | {0: 0.0}
                if "tokens" in label
                else None
            )
            held_out = [
                (at.get(m["update"]) if at is not None else value(m), m["success"])
                for m in run.evaluations
            ]
            series.append(Series(f"{run.name}, training", _known(training), colour, faint=True))
            series.append(Series(f"{run.name}, held-out", _known(held_out), colour, dots=True))
        charts.append(line_chart("Success: held-out (dots), training", series, label, share=True))
    return charts


def age_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Measures of exploration by the age of turns, each point the mean over a run's updates that
    have turns of that age."""
    charts = []
    for name in ("coverage_pairs", "repeated_pairs", "gamma_p50", "flat_thinking"):
        series = []
        for colour, run in enumerate(runs):
            by_age: dict[int, list[float]] = {}
            for record in run.updates:
                for key, value in record.items():
                    head, _, age = key.partition("/age")
                    if head == name and age.isdecimal() and value is not None:
                        by_age.setdefault(int(age), []).append(value)
            points = [(age, sum(values) / len(values)) for age, values in sorted(by_age.items())]
            series.append(Series(run.name, points, colour, dots=True))
        charts.append(line_chart(_title(name), series, "versions old"))
    return (
        charts
        if any("/age" in key for run in runs for record in run.updates[:50] for key in record)
        else []
    )


def intervention_chart(runs: Sequence[RunData]) -> list[Markup]:
    """Mean M_t around interventions."""
    series = []
    for colour, run in enumerate(runs):
        columns = zip(*run.interventions, strict=True)
        means = [
            (offset - AROUND, _mean([m for m in column if m == m]))
            for offset, column in enumerate(columns)
        ]
        series.append(
            Series(f"{run.name} ({len(run.interventions)} cuts)", _known(means), colour, dots=True)
        )
    if not any(s.points for s in series):
        return []
    return [
        line_chart(
            "Mean M_t around a cut",
            series,
            "tokens after the decision",
            marks=[(0.0, "the decision")],
        )
    ]


def summary_row(run: RunData) -> dict[str, Any]:
    """What the table says of a run."""
    updates = run.updates
    evaluations = run.evaluations
    last = updates[-1] if updates else {}
    games = evaluations[-1].get("episodes") if evaluations else None
    success = evaluations[-1].get("success") if evaluations else None
    found = collapse_signs(
        updates, run.settings.get("learner.min_effective_sample_size", MIN_EFFECTIVE_SAMPLE_SIZE)
    )
    return {
        "name": run.name,
        "updates": len(updates),
        "tokens": last.get("training_tokens"),
        "minutes": last_wall_seconds(run.records) / 60,
        "first": evaluations[0].get("success") if evaluations else None,
        "last": success,
        "interval": wilson_interval(success, games) if success is not None and games else None,
        "area": area_by_tokens(updates, evaluations),
        "per_million": _mean(
            [
                m["successes_per_million"]
                for m in updates
                if m.get("successes_per_million") is not None
            ]
        ),
        "collapsed": {True: "yes", False: "no", None: "not known"}[has_collapsed(evaluations)],
        "signs": "; ".join(f"{name}: {numbers}" for name, numbers in found.items()),
    }


def differing_settings(runs: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """(Setting, its value in each run), where runs differ; where they write is left out."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [
        (name, [run.settings.get(name, "") for run in runs])
        for name in names
        if name not in ("run.dir", "run.cache_dir")
    ]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _by_update(runs: Sequence[RunData], names: Sequence[str]) -> list[Markup]:
    charts = []
    for name in names:
        value = DERIVED[name][1] if name in DERIVED else lambda m, name=name: m.get(name)
        series = [
            Series(run.name, _known([(m["update"], value(m)) for m in run.updates]), colour)
            for colour, run in enumerate(runs)
        ]
        if any(s.points for s in series):
            known = find_metric(name)
            share = known is not None and known.unit == "share"
            says = known.description if known is not None else ""
            charts.append(line_chart(_title(name), series, "updates", share=share, describes=says))
    return charts


def _title(name: str) -> str:
    return DERIVED[name][0] if name in DERIVED else name.replace("_", " ")


def _known(points: Sequence[tuple[float | None, float | None]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if x is not None and y is not None]


def _turns(record: Record) -> float | None:
    turns = record.get("turns")
    episodes = record.get("episodes")
    return turns * episodes if turns and episodes else None


def _over(part: float | None, of: float | None) -> float | None:
    return part / of if part is not None and of else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
