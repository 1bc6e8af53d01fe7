"""Line charts, drawn here as HTML and SVG, so that a page needs no library and no network.

Lines are drawn in a square of SIZE x SIZE that the page stretches to any width and height; text
stands beside it and keeps its size. Colors come from the page (templates/style.css). A chart may
have several x-axes, of which the page shows the one that is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, isfinite, log10

from markupsafe import Markup

SIZE = 100
"""Width and height of the area of lines, in its own units."""
MOST_POINTS = 300
"""Points of a series that are drawn; more are averaged in bins."""
COLORS = 8
"""Colors of series in the page, from --series-0 on; more series begin again."""
MOST_AXES = 6
"""X-axes among which a page may let choose."""
SMALLEST = 1e-300
"""Range of a scale; below it, its steps would be no numbers."""
NO_UNIT = "no unit"
"""Words at the axis of a number without a dimension."""

Points = Sequence[tuple[float, float | None]]
KnownPoints = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points (x, y) joined by a line, without those whose y is missing or not finite.

    With `dots`, each is marked, too; `faint` stands back behind others. `color` is a number.
    `intervals` are (x, low, high), each drawn as a bar.
    """

    name: str
    points: Points
    color: int = 0
    dots: bool = False
    faint: bool = False
    intervals: Sequence[tuple[float, float, float]] = ()

    @property
    def style(self) -> str:
        """The class of its color."""
        return f"s{self.color % COLORS}"


@dataclass(frozen=True)
class Axis:
    """An x-axis with its unit as a label, and what is drawn over it.

    `marks`: vertical lines at (x, words). `choice`: number, below MOST_AXES, of the page's choice
    that shows it; None for one that is always shown.
    """

    label: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    choice: int | None = None

    @property
    def style(self) -> str:
        """The class that shows and hides it."""
        if self.choice is None:
            return "x-always"
        return f"x-{self.choice}"


@dataclass(frozen=True)
class Chart:
    """A figure. With `share`, y is shown in per cent; `large`, for the main one, shows all 100.

    `legend`: its lines are others than the page's, and are named.
    """

    title: str
    axes: Sequence[Axis]
    unit: str = NO_UNIT
    help: str = ""
    share: bool = False
    large: bool = False
    legend: bool = False


@dataclass(frozen=True)
class Scale:
    """A range of values, and the round numbers in it that are labeled."""

    low: float
    high: float
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """The place of a value, from 0 to SIZE."""
        if self.high <= self.low:
            return SIZE / 2
        return SIZE * (value - self.low) / (self.high - self.low)


def draw_chart(chart: Chart) -> Markup:
    """The chart as a figure of HTML."""
    drawn = [axis for axis in chart.axes if list(_values(axis))]
    caption = Markup('<figcaption><b>{}</b><span class="help">{}</span></figcaption>')
    parts = [
        Markup('<figure class="chart{}">').format(" large" if chart.large else ""),
        caption.format(chart.title, chart.help),
    ]
    if not drawn:
        return Markup("").join([*parts, Markup('<p class="empty">no data</p></figure>')])
    if chart.legend:
        parts.append(_draw_legend(drawn[0]))
    y_scale = _scale_y(chart, [y for axis in drawn for y in _values(axis)])
    unit = "%" if chart.share else chart.unit
    parts.append(Markup('<div class="plot"><div class="unit">{}</div>').format(unit))
    parts.append(_draw_y_ticks(y_scale, chart.share))
    svg = (
        '<div class="area"><svg viewBox="0 0 {0} {0}" preserveAspectRatio="none" role="img" '
        'aria-label="{1}" data-low="{2!r}" data-high="{3!r}" data-share="{4}">'
    )
    words = f"{chart.title}, {unit}"
    parts.append(Markup(svg).format(SIZE, words, y_scale.low, y_scale.high, int(chart.share)))
    for y in y_scale.ticks:
        line = Markup('<line class="grid" x1="0" x2="{0}" y1="{1:.2f}" y2="{1:.2f}"/>')
        parts.append(line.format(SIZE, SIZE - y_scale.place(y)))
    scales = [_scale_x(axis) for axis in drawn]
    for axis, x_scale in zip(drawn, scales, strict=True):
        parts.append(_draw_lines(axis, x_scale, y_scale, chart.share))
    parts.append(Markup("</svg></div>"))
    for axis, x_scale in zip(drawn, scales, strict=True):
        parts.append(_draw_x_ticks(axis, x_scale))
    parts.append(Markup('</div><p class="readout" aria-live="off"></p></figure>'))
    return Markup("\n").join(parts)


def thin_points(points: KnownPoints) -> KnownPoints:
    """At most MOST_POINTS: means of equally many neighbors."""
    if len(points) <= MOST_POINTS:
        return points
    bounds = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    means = []
    for start, end in pairwise(bounds):
        xs, ys = zip(*points[start:end], strict=True)
        means.append((sum(xs) / len(xs), sum(ys) / len(ys)))
    return means


def round_steps(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about so many."""
    if high - low < SMALLEST:
        high = low + (abs(low) if abs(low) >= SMALLEST else 1.0)
    least_step = (high - low) / about
    power = 10.0 ** floor(log10(least_step))
    steps = (power * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(step for step in steps if step >= least_step * 0.999)
    first = floor(low / step + 1e-9)
    count = 1
    while (first + count) * step < high - step * 1e-9:
        count += 1
    return [(first + i) * step for i in range(count + 1)]


def format_number(value: float) -> str:
    """A number in short: 1.2M, 34k, 0.05."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _format_y(value: float, share: bool) -> str:
    if share:
        return f"{100 * value:.3g}"
    return format_number(value)


def _known_points(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in series.points if y is not None and isfinite(y)]


def _values(axis: Axis) -> Iterator[float]:
    for series in axis.series:
        for _, y in _known_points(series):
            yield y
        for _, low, high in series.intervals:
            yield low
            yield high


def _draw_legend(axis: Axis) -> Markup:
    line = '<svg viewBox="0 0 24 8" aria-hidden="true"><line class="line {}" {}/></svg>'
    place = Markup('x1="0" x2="24" y1="4" y2="4"')
    names = [
        Markup(f"<span>{line}{{}}</span>").format(series.style, place, series.name)
        for series in axis.series
        if _known_points(series)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(names))


def _scale_y(chart: Chart, values: Sequence[float]) -> Scale:
    ticks = round_steps(min(*values, 0.0), max(values))
    if chart.share and chart.large:
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    ticks = _keep_whole(ticks, values)
    return Scale(min(ticks[0], *values), max(ticks[-1], *values), ticks)


def _scale_x(axis: Axis) -> Scale:
    xs = [x for x, _ in axis.marks]
    for series in axis.series:
        xs += [x for x, _ in _known_points(series)]
    low = min(xs)
    high = max(xs)
    ticks = _keep_whole(round_steps(low, high), xs)
    return Scale(low, high, [x for x in ticks if low <= x <= high])


def _keep_whole(ticks: Sequence[float], values: Sequence[float]) -> list[float]:
    """Ticks of a scale, without fractions where there are none among the values."""
    if not all(float(value).is_integer() for value in values):
        return list(ticks)
    return [tick for tick in ticks if float(tick).is_integer()] or list(ticks)


def _draw_y_ticks(scale: Scale, share: bool) -> Markup:
    tick = Markup('<span style="bottom:{:.2f}%">{}</span>')
    labels = [tick.format(scale.place(y), _format_y(y, share)) for y in scale.ticks]
    return Markup('<div class="y-ticks">{}</div>').format(Markup("").join(labels))


def _draw_x_ticks(axis: Axis, scale: Scale) -> Markup:
    tick = Markup('<span style="left:{:.2f}%">{}</span>')
    labels = [tick.format(scale.place(x), format_number(x)) for x in scale.ticks]
    return Markup('<div class="x-ticks {0}">{1}</div><div class="x-label {0}">{2}</div>').format(
        axis.style, Markup("").join(labels), axis.label
    )


def _draw_lines(axis: Axis, x_scale: Scale, y_scale: Scale, share: bool) -> Markup:
    group = Markup('<g class="{}" data-low="{!r}" data-high="{!r}" data-label="{}">')
    parts = [group.format(axis.style, x_scale.low, x_scale.high, axis.label)]
    for x, words in axis.marks:
        mark = Markup(
            '<line class="mark" x1="{0:.2f}" x2="{0:.2f}" y1="0" y2="{1}"><title>{2}</title></line>'
        )
        parts.append(mark.format(x_scale.place(x), SIZE, words))
    for series in axis.series:
        parts += _draw_series(series, x_scale, y_scale, share)
    return Markup("").join([*parts, Markup("</g>")])


def _draw_series(series: Series, x_scale: Scale, y_scale: Scale, share: bool) -> list[Markup]:
    points = thin_points(_known_points(series))
    if not points:
        return []
    places = [(x_scale.place(x), SIZE - y_scale.place(y)) for x, y in points]
    style = f"line {series.style}"
    if series.faint:
        style += " faint"
    line = Markup('<polyline class="{}" points="{}" data-name="{}"/>')
    drawn = [line.format(style, " ".join(f"{x:.2f},{y:.2f}" for x, y in places), series.name)]
    for x, low, high in series.intervals:
        bar = Markup('<line class="interval {}" x1="{:.2f}" x2="{:.2f}" y1="{:.2f}" y2="{:.2f}"/>')
        ends = (SIZE - y_scale.place(low), SIZE - y_scale.place(high))
        drawn.append(bar.format(series.style, x_scale.place(x), x_scale.place(x), *ends))
    if series.dots or len(points) == 1:
        dot = Markup('<path class="dot {}" d="M{:.2f} {:.2f}h0"><title>{}</title></path>')
        unit = " %" if share else ""
        for (x, y), place in zip(points, places, strict=True):
            words = f"{series.name}: {_format_y(y, share)}{unit} at {format_number(x)}"
            drawn.append(dot.format(series.style, *place, words))
    return drawn
