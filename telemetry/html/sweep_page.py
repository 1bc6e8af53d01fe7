"""A sweep as one HTML file: the table of all measures, what each setting changes, and each measure
over each setting that has numbers for values."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from telemetry.analysis.compare_runs import MEASURES, Row
from telemetry.analysis.effects import Effect
from telemetry.html.charts import Series, line_chart
from telemetry.html.report import templates


def render_sweep(name: str, rows: Sequence[Row], effects: Sequence[Effect]) -> str:
    """The page of a sweep called `name`."""
    shown = [measure for measure in MEASURES if any(measure in row.values for row in rows)]
    sections = [(setting, charts_over(setting, rows, shown)) for setting in numeric_settings(rows)]
    return (
        templates()
        .get_template("sweep.html")
        .render(
            name=name,
            rows=rows,
            measures={measure: MEASURES[measure] for measure in shown},
            sections=sections,
            legends={setting: legend(rows, setting) for setting, _ in sections},
            effects=effects,
            changed=[
                measure for measure in shown if any(measure in effect.changes for effect in effects)
            ],
        )
    )


def numeric_settings(rows: Sequence[Row]) -> list[str]:
    """Settings with at least two values, all of which are numbers."""
    values = {name: {row.settings[name] for row in rows} for name in rows[0].settings}
    return [
        name for name, found in values.items() if len(found) > 1 and all(map(_is_number, found))
    ]


def charts_over(setting: str, rows: Sequence[Row], measures: Sequence[str]) -> list[Markup]:
    """A chart of each measure: a line for each combination of the other settings."""
    charts = []
    for measure in measures:
        series = []
        for colour, others in enumerate(legend(rows, setting)):
            of_line = [
                row for row in rows if measure in row.values and _others(row, setting) == others
            ]
            points = sorted(
                (float(row.settings[setting]), row.values[measure][0]) for row in of_line
            )
            series.append(Series(others or measure, points, colour, dots=True))
        about = MEASURES[measure]
        charts.append(
            line_chart(
                about.title, series, setting, share=about.is_share, describes=about.description
            )
        )
    return charts


def legend(rows: Sequence[Row], setting: str) -> list[str]:
    """The combinations of the other settings, in their order."""
    return list(dict.fromkeys(_others(row, setting) for row in rows))


def _others(row: Row, setting: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.settings.items() if name != setting)


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False
