"""Intervals of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt


def wilson_interval(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson 1927)."""
    centre = share + z * z / (2 * count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """The shortest interval between two of the values, as many from the lowest as from the highest,
    that holds the median of what they are drawn from with at least `confidence`, whatever its
    distribution; None for fewer than six values, for which none does at 95 %.

    The median lies below the k-th lowest of n values when fewer than k are below it: a binomial of
    n and 1/2 (order statistics; David and Nagaraja 2003, 7.1).
    """
    ordered = sorted(values)
    count = len(values)
    outside = 0.0
    found = None
    for below in range(count // 2):
        outside += (
            2 * comb(count, below) / 2**count
        )  # the median is beyond the (below + 1)-th value from either end
        if outside > 1 - confidence:
            break
        found = ordered[below], ordered[count - 1 - below]
    return found
