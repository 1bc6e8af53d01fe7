"""Shapes of models: weights are those that are published, and those that transformers makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config.model_files import KNOWN_MODELS
from supervisor.cluster.model_shape import UnknownShape, read_shape
from tests.fixtures.shapes import shape_of

PUBLISHED_WEIGHTS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}
"""Weights as the models' pages say; a head that is the embedding counts once."""

KNOWN = json.loads(KNOWN_MODELS.read_text())


@pytest.mark.parametrize(("name", "weights"), PUBLISHED_WEIGHTS.items())
def test_model_shape_known_model_has_published_number_of_weights(name: str, weights: int) -> None:
    """The count from config.json alone is exact."""
    assert read_shape(KNOWN[name]).weights() == weights


@pytest.mark.parametrize("name", KNOWN)
def test_model_shape_known_model_has_the_weights_that_transformers_makes(name: str) -> None:
    """A model of two layers on the meta device has as many weights as its shape says."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    figures = {**KNOWN[name], "num_hidden_layers": 2}
    family = figures["model_type"]
    config = transformers.AutoConfig.for_model(**figures)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(figures).weights() == weights, family


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("0.6B", 112),
        ("1.7B", 112),
        ("4B", 144),
        ("8B", 144),
        ("30B-A3B", 96),
    ],
)
def test_model_shape_keys_and_values_of_a_token_are_arithmetic(name: str, kib: int) -> None:
    """2 x layers x key-value heads x head size x 2 bytes: of Qwen3-4B, 2 x 36 x 8 x 128 x 2."""
    assert shape_of(name).kv_bytes_per_token() == kib * 1024


def test_model_shape_adapters_have_rank_times_both_sides_of_each_matrix() -> None:
    """LoRA of rank 8 on Qwen3-0.6B: queries, keys, values, output, and the three of the MLP."""
    matrices = [(1024, 2048), (1024, 1024), (1024, 1024), (2048, 1024)] + 3 * [(1024, 3072)]
    sides = sum(rows + columns for rows, columns in matrices)
    assert shape_of("0.6B").adapter_weights(8) == 28 * 8 * sides


def test_read_shape_text_part_of_a_larger_model_counts() -> None:
    """A configuration may have its language model inside."""
    figures = KNOWN["Qwen/Qwen3-4B"]
    outer = {"model_type": "outer", "text_config": figures, "tie_word_embeddings": True}
    assert read_shape(outer) == shape_of("4B")


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"n_embd": 768, "n_layer": 12, "vocab_size": 50257}, "has no num_attention_heads"),
        ({**KNOWN["Qwen/Qwen3-4B"], "kv_lora_rank": 512}, "latent vectors"),
    ],
)
def test_read_shape_other_architecture_is_refused(figures: dict[str, Any], said: str) -> None:
    """No figure is better than a wrong one."""
    with pytest.raises(UnknownShape, match=said):
        read_shape(figures)
