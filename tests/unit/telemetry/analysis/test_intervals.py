"""Intervals of medians."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import pytest

from telemetry.analysis.intervals import median_interval


@pytest.mark.parametrize("count", range(1, 30))
def test_median_interval_has_its_coverage_and_is_the_shortest_that_does(
    count: int,
) -> None:
    """The median's interval has its coverage, and is the shortest that does.

    Of values with the median 0, each is below it with probability 1/2: all numbers of those below,
    each as often as it comes.
    """

    def holds(interval: Callable[[list[float]], tuple[float, float] | None]) -> float:
        below = (
            [-1.0 - i for i in range(k)] + [1.0 + i for i in range(count - k)]
            for k in range(count + 1)
        )
        found = (interval(values) or (0.0, 0.0) for values in below)
        return sum(
            comb(count, k) / 2**count * (low <= 0 <= high) for k, (low, high) in enumerate(found)
        )

    def shorter(values: list[float]) -> tuple[float, float]:
        low, high = median_interval(values)
        ordered = sorted(values)
        return ordered[ordered.index(low) + 1], ordered[ordered.index(high) - 1]

    if count < 6:
        assert median_interval([float(i) for i in range(count)]) is None
    else:
        assert holds(median_interval) >= 0.95 > holds(shorter)
