"""The tables of a sweep in the terminal, and its figures.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from telemetry.analysis.compare_runs import MEASURES, Row
from telemetry.analysis.effects import Change, Effect

TERMINAL_MEASURES = (
    "success",
    "area",
    "successes_per_million",
    "pairs_per_thousand",
    "repeated_pairs",
    "distinct_paths",
    "token_age_mean",
    "seconds_per_update",
)
"""Measures in the terminal, the most important first."""


def print_tables(rows: Sequence[Row], effects: Sequence[Effect], console: Console) -> None:
    """Print as many measures as fit the terminal; all are in the page and in figures.json."""
    console.print(_widest_that_fits(rows_table, rows, console))
    if effects:
        console.print(_widest_that_fits(effects_table, effects, console))


def _widest_that_fits(build_table: Any, content: Sequence[Any], console: Console) -> Table:
    for count in range(len(TERMINAL_MEASURES), 1, -1):
        table = build_table(content, TERMINAL_MEASURES[:count])
        if console.measure(table).maximum <= console.width:
            return table
    return build_table(content, TERMINAL_MEASURES[:1])


def rows_table(rows: Sequence[Row], measures: Sequence[str] = TERMINAL_MEASURES) -> Table:
    """A line for each combination of settings."""
    table = Table(
        *rows[0].settings,
        "seeds",
        *(MEASURES[name].title for name in measures),
        "speed-up",
        "of ideal",
        "collapsed",
    )
    for row in rows:
        cells = [_format_measure(row, name) for name in measures]
        table.add_row(
            *row.settings.values(),
            str(row.seeds),
            *cells,
            _format_speed_up(row),
            _format_share_of_ideal(row),
            str(row.collapsed),
        )
    return table


def effects_table(effects: Sequence[Effect], measures: Sequence[str] = TERMINAL_MEASURES) -> Table:
    """A line for each value of a setting, against its first one."""
    measured = [name for name in measures if any(name in effect.changes for effect in effects)]
    table = Table("all else equal", "pairs", *(MEASURES[name].title for name in measured))
    for effect in effects:
        cells = [_format_effect(effect, name) for name in measured]
        pairs = max((change.pairs for change in effect.changes.values()), default=0)
        table.add_row(f"{effect.setting} {effect.base} → {effect.value}", str(pairs), *cells)
    return table


def format_change(measure: str, change: Change) -> str:
    """The change's median, its interval, and in how many pairs the measure rose and fell.

    Changes of shares are in points of per cent (pp).
    """
    unit = "%"
    if MEASURES[measure].is_share:
        unit = " pp"
    lines = [f"{100 * change.median:+.1f}{unit}"]
    if change.low is not None and change.high is not None:
        lines.append(f"{100 * change.low:+.1f} to {100 * change.high:+.1f}")
    return "\n".join([*lines, f"{change.up} up, {change.down} down"])


def build_figures(rows: Sequence[Row], effects: Sequence[Effect]) -> dict[str, Any]:
    """The contents of figures.json.

    A row has its settings and {measure: [mean, low, high]}; an effect its setting and
    {measure: its Change}.
    """
    return {
        "rows": [
            {
                "settings": row.settings,
                "seeds": row.seeds,
                "collapsed": row.collapsed,
                "speed_up": row.speed_up,
                "ideal": row.ideal,
                "reached": row.reached,
                **{name: list(values) for name, values in row.values.items()},
            }
            for row in rows
        ],
        "effects": [
            {
                "setting": effect.setting,
                "base": effect.base,
                "value": effect.value,
                **{name: change._asdict() for name, change in effect.changes.items()},
            }
            for effect in effects
        ],
    }


def _format_measure(row: Row, name: str) -> str:
    if name not in row.values:
        return ""
    value, low, high = map(MEASURES[name].format, row.values[name])
    if low == high:
        return value
    return f"{value} ({low}-{high})"


def _format_speed_up(row: Row) -> str:
    if not row.speed_up:
        return ""
    return f"{row.speed_up:.2f}"


def _format_share_of_ideal(row: Row) -> str:
    if not row.reached:
        return ""
    return f"{row.reached:.0%} of {row.ideal:.2f}"


def _format_effect(effect: Effect, name: str) -> str:
    if name not in effect.changes:
        return ""
    return format_change(name, effect.changes[name])
