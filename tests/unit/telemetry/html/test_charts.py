"""Charts: every point where it belongs, whatever the numbers and the names."""

from __future__ import annotations

import re
from math import inf, nan
from xml.etree import ElementTree

from hypothesis import example, given
from hypothesis import strategies as st

from telemetry.html.charts import (
    MOST_POINTS,
    SIZE,
    Axis,
    Chart,
    Points,
    Series,
    draw_chart,
    round_steps,
    thin_points,
)


def line_chart(points: Points, share: bool = False, name: str = "s") -> str:
    """A chart of one series."""
    return draw_chart(Chart("t", [Axis("x", [Series(name, points)])], share=share, large=share))


def points_of(html: str) -> list[list[tuple[float, float]]]:
    """Return the points of each line, as drawn; the picture must be well-formed XML."""
    lines = [
        element.get("points")
        for element in ElementTree.fromstring(html).iter()
        if element.tag == "polyline"
    ]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_points_are_where_their_values_say() -> None:
    (line,) = points_of(line_chart([(0, 0.0), (5, 0.5), (10, 1.0)], share=True))
    assert line == [(0, SIZE), (SIZE / 2, SIZE / 2), (SIZE, 0)]


def test_what_has_no_value_is_left_out() -> None:
    (line,) = points_of(line_chart([(0, 1.0), (1, nan), (2, inf), (3, None), (4, 2.0)]))
    assert len(line) == 2


def test_scale_of_whole_numbers_has_no_fractions() -> None:
    """Updates and counts are labeled by whole numbers, shares and losses as they come."""
    ticks = re.findall(
        r'<span style="(?:left|bottom):[^"]+">([^<]+)<', line_chart([(4, 0), (6, 1)])
    )
    assert ticks == ["0", "1", "4", "5", "6"]
    ticks = re.findall(r'<span style="bottom:[^"]+">([^<]+)<', line_chart([(4, 0.5), (6, 1)]))
    assert "0.25" in ticks


def test_intervals_are_bars_inside_the_frame_and_have_no_line_of_their_own() -> None:
    """An interval is drawn from its low end to its high end, and widens the scale."""
    series = Series("s", [(0, 0.5), (9, 0.75)], dots=True, intervals=[(0, 0.25, 2.0)])
    html = draw_chart(Chart("t", [Axis("x", [series])]))
    bar = ElementTree.fromstring(html).find(".//line[@class='interval s0']")
    assert bar is not None and (bar.get("y1"), bar.get("y2")) == ("87.50", "0.00")
    assert len(points_of(html)) == 1


def test_legend_names_the_lines_that_have_points() -> None:
    """A chart whose lines are no runs names them."""
    axis = Axis(
        "x", [Series("<wait>", [(0, 1.0)]), Series("train", [(0, 2.0)], 1), Series("no", [])]
    )
    html = draw_chart(Chart("t", [axis], legend=True))
    assert re.findall(r"</svg>([^<]+)</span>", html) == ["&lt;wait&gt;", "train"]


def test_a_chart_without_points_says_so() -> None:
    assert "no data" in line_chart([])


def test_names_are_text() -> None:
    name = "<script>alert(1)</script>"
    axis = Axis(name, [Series(name, [(0, 1.0)])], [(0.0, name)])
    html = draw_chart(Chart(name, [axis], name, name))
    assert "<script" not in html and points_of(html)


def test_a_chart_has_its_unit_and_help_and_the_label_of_each_axis() -> None:
    axes = [
        Axis(label, [Series("s", [(0, 1.0), (9, 2.0)])], choice=i) for i, label in enumerate("ab")
    ]
    html = draw_chart(Chart("t", axes, "nats", "what it is"))
    assert '<div class="unit">nats</div>' in html and "what it is" in html
    assert '<div class="x-label x-0">a</div>' in html and 'x-label x-1">b</div>' in html
    assert len(points_of(html)) == 2


finite = st.floats(-1e9, 1e9)


@example([(0.0, 5e-324)])
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_all_points_are_inside_the_frame(points: list[tuple[float, float]]) -> None:
    (line,) = points_of(line_chart(points))
    assert len(line) == len(points)
    assert all(-0.1 <= x <= SIZE + 0.1 and -0.1 <= y <= SIZE + 0.1 for x, y in line)


@given(finite, st.floats(1e-6, 1e9))
def test_ticks_span_the_values_and_are_few(low: float, width: float) -> None:
    found = round_steps(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert found[0] <= low + slack and found[-1] >= low + width - slack and 2 <= len(found) <= 8


@given(st.integers(1, 5000))
def test_long_series_are_thinned_without_losing_their_mean(count: int) -> None:
    points = [(float(i), float(i % 7)) for i in range(count)]
    few = thin_points(points)
    assert len(few) == min(count, MOST_POINTS) and list(few) == sorted(few)
    if count % MOST_POINTS == 0:
        assert abs(sum(y for _, y in few) / len(few) - sum(y for _, y in points) / count) < 1e-9


def test_numbers_on_the_axes_are_short() -> None:
    html = line_chart([(0, 0.0), (2_000_000, 0.00002)])
    labels = re.findall(r'<span style="[a-z]+:[0-9.]+%">([^<]*)<', html)
    assert "2M" in labels and "1e-05" in labels
