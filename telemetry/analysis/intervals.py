"""Intervals of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import fmean, stdev


def wilson_interval(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson 1927)."""
    z_squared = z * z
    center = share + z_squared / (2 * count)
    variance = share * (1 - share) / count + z_squared / (4 * count * count)
    half_width = z * sqrt(variance)
    scale = 1 + z_squared / count
    return (center - half_width) / scale, (center + half_width) / scale


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """The shortest interval that holds the median with at least `confidence`; None for too few.

    It lies between two of the values, as many from the lowest as from the highest, and holds
    whatever the distribution is that they are drawn from. At 95 % it takes six values.

    The median lies below the k-th lowest of n values when fewer than k are below it: a binomial of
    n and 1/2 (order statistics; David and Nagaraja 2003, 7.1).
    """
    ordered = sorted(values)
    count = len(values)
    outside = 0.0
    interval = None
    for below in range(count // 2):
        # The median is beyond the (below + 1)-th value from either end.
        outside += 2 * comb(count, below) / 2**count
        if outside > 1 - confidence:
            break
        interval = (ordered[below], ordered[count - 1 - below])
    return interval


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """Mean and 95 % interval of values, by the normal distribution; of one value, that value."""
    average = fmean(values)
    if len(values) == 1:
        return average, average, average
    half_width = z * stdev(values) / sqrt(len(values))
    return average, average - half_width, average + half_width
