"""Charts: every point where it belongs, whatever the numbers and the names."""

from __future__ import annotations

import re
from math import inf, nan
from xml.etree import ElementTree

from hypothesis import example, given
from hypothesis import strategies as st

from telemetry.html.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    thinned,
    ticks,
)


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """Of each line, as drawn; the picture must be well-formed XML."""
    lines = [
        element.get("points")
        for element in ElementTree.fromstring(svg).iter()
        if element.tag == "polyline"
    ]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_points_are_where_their_values_say() -> None:
    (line,) = points_of(
        line_chart("t", [Series("s", [(0, 0.0), (5, 0.5), (10, 1.0)], 0)], "x", share=True)
    )
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)
    assert line == [(LEFT, HEIGHT - BOTTOM), middle, (WIDTH - RIGHT, TOP)]


def test_what_has_no_value_is_left_out() -> None:
    (line,) = points_of(
        line_chart("t", [Series("s", [(0, 1.0), (1, nan), (2, inf), (3, None), (4, 2.0)], 0)], "x")
    )
    assert len(line) == 2


def test_a_chart_without_points_says_so() -> None:
    assert "no data" in line_chart("t", [Series("s", [], 0)], "x")


def test_names_are_text() -> None:
    name = "<script>alert(1)</script>"
    svg = line_chart(name, [Series(name, [(0, 1.0)], 0)], name, marks=[(0.0, name)])
    assert "<script" not in svg and points_of(svg)


finite = st.floats(-1e9, 1e9)


@example([(0.0, 5e-324)])
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_all_points_are_inside_the_frame(points: list[tuple[float, float]]) -> None:
    (line,) = points_of(line_chart("t", [Series("s", points, 0)], "x"))
    assert len(line) == len(points)
    assert all(
        LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
        for x, y in line
    )


@given(finite, st.floats(1e-6, 1e9))
def test_ticks_span_the_values_and_are_few(low: float, width: float) -> None:
    found = ticks(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert found[0] <= low + slack and found[-1] >= low + width - slack and 2 <= len(found) <= 8


@given(st.integers(1, 5000))
def test_long_series_are_thinned_without_losing_their_mean(count: int) -> None:
    points = [(float(i), float(i % 7)) for i in range(count)]
    few = thinned(points)
    assert len(few) == min(count, MOST_POINTS) and list(few) == sorted(few)
    if count % MOST_POINTS == 0:
        assert abs(sum(y for _, y in few) / len(few) - sum(y for _, y in points) / count) < 1e-9


def test_numbers_on_the_axes_are_short() -> None:
    svg = line_chart("t", [Series("s", [(0, 0.0), (2_000_000, 0.00002)], 0)], "x")
    labels = re.findall(r'class="tick [a-z]+"[^>]*>([^<]*)<', svg)
    assert "2M" in labels and "1e-05" in labels
