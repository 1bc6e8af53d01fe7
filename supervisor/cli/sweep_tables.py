"""What a sweep shows in the terminal and writes to figures.json."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from telemetry.analysis.compare_runs import MEASURES, Row
from telemetry.analysis.effects import Change, Effect

SHOWN = (
    "success",
    "area",
    "successes_per_million",
    "pairs_per_thousand",
    "repeated_pairs",
    "distinct_paths",
    "token_age_mean",
    "seconds_per_update",
)
"""Measures in the terminal."""


def rows_table(rows: Sequence[Row]) -> Table:
    """The main columns; all of them are in the page and in figures.json."""
    out = Table(
        *rows[0].settings,
        "seeds",
        *(MEASURES[name].title for name in SHOWN),
        "speed-up",
        "of ideal",
        "collapsed",
    )
    for row in rows:
        cells = [_cell(row, name) for name in SHOWN]
        speed = [
            f"{row.speed_up:.2f}" if row.speed_up else "",
            f"{row.reached:.0%} of {row.ideal:.2f}" if row.reached else "",
        ]
        out.add_row(*row.settings.values(), str(row.seeds), *cells, *speed, str(row.collapsed))
    return out


def effects_table(found: Sequence[Effect]) -> Table:
    """A line for each value of a setting, against its first one."""
    shown = [name for name in SHOWN if any(name in effect.changes for effect in found)]
    out = Table("all else equal", "pairs", *(MEASURES[name].title for name in shown))
    for effect in found:
        cells = [
            change_text(name, effect.changes[name]) if name in effect.changes else ""
            for name in shown
        ]
        pairs = max((change.pairs for change in effect.changes.values()), default=0)
        out.add_row(f"{effect.setting} {effect.base} → {effect.value}", str(pairs), *cells)
    return out


def change_text(measure: str, change: Change) -> str:
    """Its median (of shares in points of per cent: pp), the interval, and in how many pairs it rose
    and fell."""
    lines = [f"{100 * change.median:+.1f}{' pp' if MEASURES[measure].is_share else '%'}"]
    if change.low is not None and change.high is not None:
        lines.append(f"{100 * change.low:+.1f} to {100 * change.high:+.1f}")
    return "\n".join([*lines, f"{change.up} up, {change.down} down"])


def figures(rows: Sequence[Row], found: Sequence[Effect]) -> dict:
    """For figures.json.

    Rows: {measure: [mean, low, high]}, and the settings; effects: {measure: its Change}, and of
    what.
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
                "setting": e.setting,
                "base": e.base,
                "value": e.value,
                **{name: change._asdict() for name, change in e.changes.items()},
            }
            for e in found
        ],
    }


def _cell(row: Row, name: str) -> str:
    if name not in row.values:
        return ""
    value, low, high = map(MEASURES[name].format, row.values[name])
    return value if low == high else f"{value} ({low}-{high})"
