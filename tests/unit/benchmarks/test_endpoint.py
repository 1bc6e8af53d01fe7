"""The benchmark of the endpoint asks for the same turns in all ways."""

from __future__ import annotations

import pytest

from benchmarks.endpoint import DIRECT, WAYS, measure


@pytest.mark.slow
def test_measure_plays_all_turns_of_each_way() -> None:
    figures = measure(2, 1e6, 1)
    assert figures.keys() == WAYS.keys()
    assert figures[DIRECT]["ratio"] == 1.0
    assert all(each["turns_per_s"] > 0 for each in figures.values())
