"""Intervals of confidence."""

from __future__ import annotations

from math import sqrt


def wilson(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson 1927)."""
    centre = share + z * z / (2 * count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)
