"""A sweep as one HTML file.

It has a chart of each measure, over a setting that has numbers for values, the table of all
measures, and the effects of each setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from telemetry.analysis.compare_runs import MEASURES, Row, mean_curves
from telemetry.analysis.effects import Effect
from telemetry.html.charts import COLORS, MOST_AXES, Axis, Chart, Series, draw_chart
from telemetry.html.report import build_templates
from telemetry.sinks.metrics_file import Record

Runs = Sequence[tuple[Mapping[str, str], Sequence[Record]]]
"""Settings without the seed, and records, of each run."""


def render_sweep(name: str, rows: Sequence[Row], effects: Sequence[Effect], runs: Runs = ()) -> str:
    """The page of a sweep called `name`."""
    measures = {
        measure: about
        for measure, about in MEASURES.items()
        if any(measure in row.values for row in rows)
    }
    settings = numeric_settings(rows)[:MOST_AXES]
    template = build_templates().get_template("sweep.html")
    return template.render(
        name=name,
        rows=rows,
        measures=measures,
        x_axes=settings,
        learning=draw_learning(runs),
        charts=[draw_measure(measure, rows, settings) for measure in measures if settings],
        legends=[combinations_of_others(rows, setting) for setting in settings],
        effects=effects,
        changed=[
            measure for measure in measures if any(measure in effect.changes for effect in effects)
        ],
    )


def draw_learning(runs: Runs) -> Markup:
    """Held-out success over updates, a line for each combination of settings.

    Nothing with fewer evaluations than a line takes, or more combinations than colors.
    """
    curves = mean_curves(runs)
    if not any(len(points) > 1 for points in curves.values()) or len(curves) > COLORS:
        return Markup("")
    series = [
        Series(
            words or "success",
            [(update, average) for update, average, _, _ in points],
            color,
            dots=True,
            intervals=[(update, low, high) for update, _, low, high in points],
        )
        for color, (words, points) in enumerate(curves.items())
    ]
    help_text = "Mean over seeds of held-out success; bars go from the lowest seed to the highest."
    axis = Axis("updates", series)
    return draw_chart(
        Chart("Success", [axis], "%", help_text, share=True, large=True, legend=len(series) > 1)
    )


def numeric_settings(rows: Sequence[Row]) -> list[str]:
    """Settings with at least two values, all of which are numbers."""
    numeric = []
    for name in rows[0].settings:
        values = {row.settings[name] for row in rows}
        if len(values) > 1 and all(map(_is_number, values)):
            numeric.append(name)
    return numeric


def draw_measure(measure: str, rows: Sequence[Row], settings: Sequence[str]) -> Markup:
    """A chart of a measure over each setting: a line for each combination of the others."""
    about = MEASURES[measure]
    axes = []
    for choice, setting in enumerate(settings):
        series = []
        for color, others in enumerate(combinations_of_others(rows, setting)):
            places = sorted(
                (float(row.settings[setting]), *row.values[measure])
                for row in rows
                if measure in row.values and _others(row, setting) == others
            )
            points = [(x, average) for x, average, _, _ in places]
            bars = [(x, low, high) for x, _, low, high in places]
            series.append(Series(others or measure, points, color, dots=True, intervals=bars))
        axes.append(Axis(setting, series, choice=choice))
    return draw_chart(
        Chart(about.title, axes, about.unit, help=about.description, share=about.is_share)
    )


def combinations_of_others(rows: Sequence[Row], setting: str) -> list[str]:
    """The combinations of the other settings in words, in their order."""
    return list(dict.fromkeys(_others(row, setting) for row in rows))


def _others(row: Row, setting: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.settings.items() if name != setting)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
