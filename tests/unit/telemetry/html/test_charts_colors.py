"""Colors of the pages: told apart by all eyes, and seen against the ground, in light and dark."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from telemetry.html.charts import COLORS
from telemetry.html.report import TEMPLATES

SIMULATED = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
    "deuteranopia": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "tritanopia": np.array(
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]
    ),
}
"""Linear RGB as seen (Machado, Oliveira and Fernandes 2009, severity 1)."""

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])
LEAST_DIFFERENCE = 20
"""Euclidean distance in CIELAB, where 2 is just noticeable side by side."""
PATTERNS = (range(COLORS // 2), range(COLORS // 2, COLORS))
"""Colors of lines that are drawn, and of those that are dashed."""


def linear_rgb(color: str) -> np.ndarray:
    """Return the linear components of a color #rrggbb."""
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    xyz = TO_XYZ @ np.clip(linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(color: str, ground: str) -> float:
    """By WCAG."""
    low, high = sorted(float(TO_XYZ[1] @ linear_rgb(one)) for one in (color, ground))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(params=["light", "dark"])
def colors(request: pytest.FixtureRequest) -> dict[str, str]:
    """The tokens of color of a theme."""
    themes = (TEMPLATES / "style.css").read_text().split("@media (prefers-color-scheme: dark)")
    theme = themes[("light", "dark").index(request.param)]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))


@pytest.mark.parametrize("eyes", SIMULATED)
@pytest.mark.parametrize("pattern", PATTERNS, ids=["solid", "dashed"])
def test_lines_of_a_pattern_are_told_apart(
    colors: dict[str, str], pattern: range, eyes: str
) -> None:
    seen = [lab(SIMULATED[eyes] @ linear_rgb(colors[f"series-{i}"])) for i in pattern]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > LEAST_DIFFERENCE


def test_lines_and_words_stand_out_from_the_ground(colors: dict[str, str]) -> None:
    for ground in ("ground", "panel"):
        for i in range(COLORS):
            assert contrast(colors[f"series-{i}"], colors[ground]) > 3
        for name in ("ink", "faint", "accent", "good", "bad", "warn"):
            assert contrast(colors[name], colors[ground]) > 4.5


def test_all_colors_are_tokens() -> None:
    """A color outside of them would not be there for both themes."""
    style = (TEMPLATES / "style.css").read_text()
    rules = style.split("/* The page. */")[1]
    assert re.findall(r"#[0-9a-f]{3,6}\b|rgb\(\d", rules) == []
