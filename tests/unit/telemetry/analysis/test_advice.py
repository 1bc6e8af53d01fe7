"""Advice on settings that do not fit: said where the numbers show it, and nowhere else."""

from __future__ import annotations

import pytest

from telemetry.analysis.advice import find_advice


def test_find_advice_most_responses_cut_off_names_the_budget() -> None:
    """Responses that never come to an action teach nothing."""
    (words,) = find_advice({"truncated_share": 0.97}).values()
    assert words.startswith("97% of the responses") and "sampling.max_tokens" in words


@pytest.mark.parametrize("record", [{"truncated_share": 0.5}, {"truncated_share": None}, {}])
def test_find_advice_responses_that_mostly_end_say_nothing(record: dict) -> None:
    """A response that is cut off now and then is usual."""
    assert find_advice(record) == {}
