"""Line charts as SVG, drawn here, so that a report needs no script and no network.

Colours come from the page (CSS variables).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import floor, isfinite, log10

from markupsafe import Markup

WIDTH = 420
HEIGHT = 220
LEFT = 52
RIGHT = 12
TOP = 26
BOTTOM = 34
MOST_POINTS = 300
"""Of a series; more are averaged in bins."""
COLOURS = 8
"""In the page: --series-0 to --series-7; more series begin again."""
SMALLEST = 1e-300
"""Range of a scale; below it, its steps would be no numbers."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points (x, y) joined by a line; with `dots`, each is marked, too; `faint` stands back behind
    others. `colour` is a number."""

    name: str
    points: Points
    colour: int
    dots: bool = False
    faint: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    share: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    describes: str = "",
) -> Markup:
    """The chart.

    Points whose y is missing or not finite are left out. `share`: y is from 0 to 1, in per cent.
    `marks`: vertical lines at (x, what it says). `describes`: a sentence for who points at it.
    """
    drawn = [
        replace(s, points=[(x, y) for x, y in s.points if y is not None and isfinite(y)])
        for s in series
    ]
    xs = [x for s in drawn for x, _ in s.points] + [x for x, _ in marks]
    ys = [y for s in drawn for _, y in s.points]
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(
            WIDTH, HEIGHT, describes or title
        )
    ]
    parts.append(_text(LEFT, 16, title, "chart-title"))
    if not ys:
        return Markup("").join(
            [*parts, _text(WIDTH / 2, HEIGHT / 2, "no data", "tick middle"), Markup("</svg>")]
        )
    x_ticks = [x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]
    y_ticks = [0, 0.25, 0.5, 0.75, 1] if share else ticks(min(*ys, 0), max(ys))
    x_range = (min(xs), max(xs))
    y_range = (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * _along(x, *x_range),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _along(y, *y_range),
        )

    for y in y_ticks:
        _, py = at(x_range[0], y)
        parts.append(
            Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(
                LEFT, py, WIDTH - RIGHT, py
            )
        )
        parts.append(_text(LEFT - 6, py + 4, f"{y:.0%}" if share else number(y), "tick end"))
    for x in x_ticks:
        px, _ = at(x, y_range[0])
        parts.append(_text(px, HEIGHT - BOTTOM + 14, number(x), "tick middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "tick middle"))
    for x, says in marks:
        px, _ = at(x, y_range[0])
        line = '<line class="mark" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"><title>{3}</title></line>'
        parts.append(Markup(line).format(px, TOP, HEIGHT - BOTTOM, says))
    for s in drawn:
        parts += _drawn(s, at, share)
    return Markup("\n").join([*parts, Markup("</svg>")])


def _drawn(series: Series, at, share: bool) -> list[Markup]:
    points = thinned(series.points)
    colour = f"var(--series-{series.colour % COLOURS})"
    line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
    kind = "line faint" if series.faint else "line"
    parts = [
        Markup(
            '<polyline class="{}" points="{}" style="stroke:{}"><title>{}</title></polyline>'
        ).format(kind, line, colour, series.name)
    ]
    for x, y in points if series.dots or len(points) == 1 else []:
        px, py = at(x, y)
        says = f"{series.name}: {f'{y:.1%}' if share else number(y)} at {number(x)}"
        dot = '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5" style="fill:{}"><title>{}</title></circle>'
        parts.append(Markup(dot).format(px, py, colour, says))
    return parts


def thinned(points: Points) -> Points:
    """At most MOST_POINTS: means of equally many neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    bounds = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    parts = [points[start:end] for start, end in pairwise(bounds)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about so many."""
    if high - low < SMALLEST:
        high = low + (abs(low) if abs(low) >= SMALLEST else 1.0)
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = floor(low / step + 1e-9)
    count = 1
    while (first + count) * step < high - step * 1e-9:
        count += 1
    return [(first + i) * step for i in range(count + 1)]


def number(value: float) -> str:
    """Short: 1.2M, 34k, 0.05."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _along(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _text(x: float, y: float, words: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)
