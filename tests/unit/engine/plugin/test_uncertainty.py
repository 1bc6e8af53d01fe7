"""Uncertainty against a slow float64 reference, and at the edges.

They are impossible tokens, NaN and low precision.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.plugin.uncertainty import divide_by_temperature, uncertainty
from tests.fixtures.examples import scale_examples


def reference(logits: list[float], top_j: int) -> tuple[float, float, float]:
    """(entropy, confidence, top log-prob) of one row in Python's doubles, from the definitions."""
    highest = max(logits)
    weights = [math.exp(x - highest) for x in logits]
    total = math.fsum(weights)
    log_probs = [x - highest - math.log(total) for x in logits]
    entropy = -math.fsum(w / total * lp for w, lp in zip(weights, log_probs, strict=True) if w > 0)
    top = sorted((lp for lp in log_probs if lp > -math.inf), reverse=True)[:top_j]
    return entropy, -math.fsum(top) / len(top), top[0]


finite = st.floats(-60, 60, allow_nan=False, width=32)
possible_or_not = st.one_of(finite, st.just(-math.inf))
rows = st.lists(possible_or_not, min_size=1, max_size=40).filter(
    lambda row: any(x > -math.inf for x in row)
)


@given(rows, st.integers(1, 50))
@scale_examples(300)
def test_a_row_agrees_with_the_definition_in_float64(row: list[float], top_j: int) -> None:
    result = uncertainty(torch.tensor([row]), top_j)
    for value, expected in zip(result, reference(row, top_j), strict=True):
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(1, 3000))
@scale_examples(50)
def test_many_rows_of_a_large_vocabulary_agree(seed: int, rows: int, vocabulary: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5
    result = uncertainty(logits, 20)
    for i in range(rows):
        for value, expected in zip(result, reference(logits[i].tolist(), 20), strict=True):
            assert value[i].item() == pytest.approx(expected, rel=2e-5, abs=2e-5)


def test_a_certain_row_has_no_entropy() -> None:
    logits = torch.full((1, 8), -math.inf)
    logits[0, 3] = 2.0
    assert [value.item() for value in uncertainty(logits, 4)] == [0.0, 0.0, 0.0]


def test_a_uniform_row_has_the_entropy_of_its_vocabulary() -> None:
    result = uncertainty(torch.zeros(1, 1000), 20)
    assert result.entropy.item() == pytest.approx(math.log(1000), abs=1e-5)
    assert result.confidence.item() == pytest.approx(math.log(1000), abs=1e-5)


def test_a_row_with_nan_is_nan_and_leaves_the_others_alone() -> None:
    logits = torch.zeros(2, 4)
    logits[0, 1] = math.nan
    result = uncertainty(logits, 2)
    assert all(
        math.isnan(value[0]) and math.isfinite(value[1])
        for value in (result.entropy, result.top_log_prob)
    )


def test_logits_are_not_changed() -> None:
    logits = torch.randn(3, 9)
    before = logits.clone()
    uncertainty(logits, 4)
    assert torch.equal(logits, before)


def test_bfloat16_is_summed_in_float32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    assert uncertainty(logits, 1).entropy.item() == pytest.approx(math.log(4096), abs=1e-4)


def test_top_j_must_be_positive() -> None:
    with pytest.raises(ValueError, match="top_j"):
        uncertainty(torch.zeros(1, 4), 0)


def test_temperature_divides_each_row_and_greedy_rows_by_one() -> None:
    logits = torch.tensor([[2.0, 4.0], [2.0, 4.0], [2.0, 4.0]])
    result = divide_by_temperature(logits, torch.tensor([2.0, 0.0, 1.0]))
    assert result.tolist() == [[1.0, 2.0], [2.0, 4.0], [2.0, 4.0]]


@pytest.mark.parametrize("chunk", [1, 40, 41, 120, 10**6])
def test_rows_taken_in_parts_have_the_same_values(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    whole = uncertainty(logits, 5)
    monkeypatch.setattr("engine.plugin.uncertainty.CHUNK", chunk)
    for got, expected in zip(uncertainty(logits, 5), whole, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("width", [19, 20, 160, 161, 168, 169, 1000, 8192, 9001])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_largest_are_found_in_rows_of_any_width(width: int, repeated: bool) -> None:
    logits = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    if repeated:
        logits = logits.round()
    log_probs = torch.log_softmax(logits, -1)
    expected = -log_probs.sort(-1).values[:, -20:].mean(-1)
    torch.testing.assert_close(uncertainty(logits, 20).confidence, expected, rtol=1e-5, atol=1e-6)
