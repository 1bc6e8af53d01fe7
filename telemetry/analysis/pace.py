"""How long the phase of a run that is under way will still take. Pure."""

from __future__ import annotations

FIRST_STEPS = 10
"""Steps of a phase after which its pace is known."""


def phase_seconds_left(done: float | None, total: float | None, seconds: float) -> float | None:
    """Seconds until a phase that has done so many of its steps in `seconds` is over.

    None before its first steps, and where their number is not known.
    """
    if not done or not total or done < min(FIRST_STEPS, total):
        return None
    return max(0.0, (total - done) * seconds / done)
