"""Bytes that an update of Qwen3's sizes needs, as fake tensors tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from learner.model.head import CHUNK_LOGITS
from learner.ranks import Ranks
from tests.fixtures.memory import SIZES, fake_ranks, measure_memory, shorten

pytestmark = pytest.mark.slow

LAYERS = 2
"""Of those that the models have: each keeps as much as the next."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with fake_ranks(8) as made:
        yield made


@pytest.mark.parametrize("tokens", [8_192, 32_768])
@pytest.mark.parametrize("size", SIZES)
def test_an_update_with_checkpointing_keeps_layers_inputs_and_no_logits(
    size: str, tokens: int, ranks: Ranks
) -> None:
    """A layer keeps its input in bfloat16, the last norm and the head a few rows of floats."""
    config = shorten(SIZES[size], LAYERS)
    memory = measure_memory(config, tokens, tokens // 2, checkpointing=True, ranks=ranks)
    assert 0 < memory.logits_bytes <= 4 * CHUNK_LOGITS
    inputs = 2 * LAYERS * tokens * config.hidden_size
    last_rows = 4 * 3 * tokens * config.hidden_size
    assert inputs <= memory.kept_bytes <= inputs + last_rows


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_an_update_without_checkpointing_keeps_no_logits_and_no_scores(
    size: str, ranks: Ranks
) -> None:
    """What a layer keeps grows with its widths and the tokens alone: attention keeps no scores.

    These are inputs and outputs of its matrices, norms and rotations, in bfloat16.
    """
    tokens = 8_192
    config = shorten(SIZES[size], LAYERS)
    memory = measure_memory(config, tokens, tokens // 2, checkpointing=False, ranks=ranks)
    assert 0 < memory.logits_bytes <= 4 * CHUNK_LOGITS
    heads = config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    widths = 6 * config.hidden_size + 4 * heads + 4 * config.intermediate_size
    last_rows = 4 * 3 * tokens * config.hidden_size
    assert memory.kept_bytes <= 1.1 * 2 * LAYERS * tokens * widths + last_rows
