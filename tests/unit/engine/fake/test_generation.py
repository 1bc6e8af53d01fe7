"""What the fake engine leaves of a distribution, as vLLM does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.fake.generation import keep_likeliest  # noqa: E402

LOGITS = st.lists(st.integers(-30, 30), min_size=1, max_size=12, unique=True)


def kept_slowly(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """The slow reference: tokens one after another, the likeliest first."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    ranked = ranked[: top_k or len(ranked)]
    weights = [math.exp(logits[token]) for token in ranked]
    kept: set[int] = set()
    share = 0.0
    for token, weight in zip(ranked, weights, strict=True):
        kept.add(token)
        share += weight / sum(weights)
        if share >= top_p:
            break
    return kept


@given(LOGITS, st.integers(0, 14), st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.95, 1.0]))
def test_keep_likeliest_leaves_what_a_loop_over_tokens_leaves(
    numbers: list[int], top_k: int, top_p: float
) -> None:
    logits = torch.tensor(numbers, dtype=torch.float64) / 7
    kept = keep_likeliest(logits, top_k, top_p)
    possible = {token for token in range(len(numbers)) if kept[token] > float("-inf")}
    assert possible == kept_slowly(logits.tolist(), top_k, top_p)
    assert all(kept[token] == logits[token] for token in possible)


def test_keep_likeliest_keeps_tokens_that_are_as_likely_as_the_last_one() -> None:
    kept = keep_likeliest(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2, top_p=1.0)
    assert torch.isfinite(kept).tolist() == [True, True, True, False]
