"""When a phase ends, by its pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.analysis.pace import phase_seconds_left


@pytest.mark.parametrize(
    ("done", "total", "left"),
    [(None, None, None), (0, 100, None), (9, 100, None), (10, 100, 90.0), (2, 4, None), (4, 4, 0)],
)
def test_phase_seconds_left_is_known_after_the_first_steps(
    done: float | None, total: float | None, left: float | None
) -> None:
    """Ten steps give a pace; fewer do not, unless there are no more."""
    assert phase_seconds_left(done, total, 10.0) == left


@given(st.integers(10, 1000), st.integers(0, 1000), st.floats(0, 1e6))
def test_phase_seconds_left_is_the_rest_at_the_pace_so_far(
    done: int, missing: int, seconds: float
) -> None:
    """What is left takes as long a step as what is done."""
    left = phase_seconds_left(done, done + missing, seconds)
    assert left == pytest.approx(missing * seconds / done)
