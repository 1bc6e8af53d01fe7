"""A sweep as one HTML file.

It has a chart of each measure over each setting that has numbers for values, the table of all
measures, and the effects of each setting.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from telemetry.analysis.compare_runs import MEASURES, Row
from telemetry.analysis.effects import Effect
from telemetry.html.charts import Axis, Chart, Series, draw_chart
from telemetry.html.report import build_templates


def render_sweep(name: str, rows: Sequence[Row], effects: Sequence[Effect]) -> str:
    """The page of a sweep called `name`."""
    measures = {
        measure: about
        for measure, about in MEASURES.items()
        if any(measure in row.values for row in rows)
    }
    settings = numeric_settings(rows)
    template = build_templates().get_template("sweep.html")
    return template.render(
        name=name,
        rows=rows,
        measures=measures,
        sections=[(setting, draw_over(setting, rows, list(measures))) for setting in settings],
        legends={setting: combinations_of_others(rows, setting) for setting in settings},
        effects=effects,
        changed=[
            measure for measure in measures if any(measure in effect.changes for effect in effects)
        ],
    )


def numeric_settings(rows: Sequence[Row]) -> list[str]:
    """Settings with at least two values, all of which are numbers."""
    numeric = []
    for name in rows[0].settings:
        values = {row.settings[name] for row in rows}
        if len(values) > 1 and all(map(_is_number, values)):
            numeric.append(name)
    return numeric


def draw_over(setting: str, rows: Sequence[Row], measures: Sequence[str]) -> list[Markup]:
    """A chart of each measure: a line for each combination of the other settings."""
    charts = []
    for measure in measures:
        series = []
        for color, others in enumerate(combinations_of_others(rows, setting)):
            points = sorted(
                (float(row.settings[setting]), row.values[measure][0])
                for row in rows
                if measure in row.values and _others(row, setting) == others
            )
            series.append(Series(others or measure, points, color, dots=True))
        about = MEASURES[measure]
        axes = [Axis(setting, series)]
        chart = Chart(about.title, axes, about.unit, help=about.description, share=about.is_share)
        charts.append(draw_chart(chart))
    return charts


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
