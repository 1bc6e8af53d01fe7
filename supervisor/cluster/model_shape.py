"""The shape of a causal language model, from its config.json alone, and how many weights it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config import TinySection
from protocol.model_json import text_config

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names that configurations have for the number of a layer's experts."""


class UnknownShape(ValueError):
    """A configuration whose memory cannot be told; the message says what is missing."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with attention of grouped queries and gated MLPs, dense or of experts."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    """Width of a dense layer's MLP; of one expert where there are experts."""
    vocabulary: int
    is_tied: bool
    """True if the language-model head is the embedding."""
    experts: int
    """Experts of a layer; 0: its MLP is dense."""
    experts_per_token: int
    norms_heads: bool
    """True if queries and keys are normalized, as Qwen3's are."""
    biases_queries: bool
    """True if the projections to queries, keys and values have biases, as Qwen2's have."""
    longest: int
    """Tokens of the longest text that it was made for; 0: the configuration does not say."""
    dtype: str
    """Precision of the checkpoint's weights, as torch calls it."""

    @property
    def query_width(self) -> int:
        """Width of all queries of a token, which is that of the attention's output."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Width of all keys of a token, which is that of its values."""
        return self.kv_heads * self.head_size

    @property
    def active_mlp(self) -> int:
        """Width of all MLPs that a token goes through in a layer."""
        return self.mlp * max(1, self.experts_per_token)

    def attention_weights(self) -> int:
        """Count the weights of one layer's attention, norms included."""
        matrices = 2 * self.hidden * self.query_width + 2 * self.hidden * self.kv_width
        biases = (self.query_width + 2 * self.kv_width) * self.biases_queries
        norms = 2 * self.head_size * self.norms_heads
        return matrices + biases + norms

    def layer_weights(self) -> int:
        """Count the weights of one layer."""
        one_mlp = 3 * self.hidden * self.mlp
        router = self.hidden * self.experts
        norms = 2 * self.hidden
        return self.attention_weights() + one_mlp * max(1, self.experts) + router + norms

    def embedding_weights(self) -> int:
        """Count the weights of the embedding, and of a head of its own."""
        matrices = 2 - self.is_tied
        return matrices * self.vocabulary * self.hidden

    def weights(self) -> int:
        """Count all weights."""
        return self.embedding_weights() + self.layers * self.layer_weights() + self.hidden

    def adapter_weights(self, rank: int) -> int:
        """Count the weights of LoRA adapters of this rank beside each matrix of the layers.

        Experts have none: their matrices are tensors of three dimensions.
        """
        sides = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.kv_width)
        if not self.experts:
            sides += 3 * (self.hidden + self.mlp)
        return self.layers * rank * sides

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv_width * element_bytes


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape from the contents of a config.json.

    Raises UnknownShape for an architecture that is no such decoder.
    """
    text = text_config(config)
    if "kv_lora_rank" in text:
        raise UnknownShape("its attention keeps latent vectors, and no keys and values")
    heads = _required(text, "num_attention_heads")
    hidden = _required(text, "hidden_size")
    experts = max(int(text.get(name) or 0) for name in EXPERT_COUNTS)
    mlp = _required(text, "intermediate_size")
    experts_per_token = 0
    if experts:
        mlp = int(text.get("moe_intermediate_size") or mlp)
        experts_per_token = _required(text, "num_experts_per_tok")
    family = str(text.get("model_type", ""))
    return ModelShape(
        hidden=hidden,
        layers=_required(text, "num_hidden_layers"),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // heads),
        mlp=mlp,
        vocabulary=_required(text, "vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        experts=experts,
        experts_per_token=experts_per_token,
        norms_heads=family.startswith("qwen3"),
        biases_queries=family.startswith("qwen2") or bool(text.get("attention_bias")),
        longest=int(text.get("max_position_embeddings") or 0),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32"),
    )


def tiny_shape(tiny: TinySection) -> ModelShape:
    """The shape of the policy that is made on the spot (learner/warm_start/tiny.py)."""
    return ModelShape(
        hidden=tiny.hidden_size,
        layers=tiny.layers,
        heads=tiny.heads,
        kv_heads=tiny.heads,
        head_size=32,
        mlp=3 * tiny.hidden_size,
        vocabulary=tiny.vocabulary,
        is_tied=True,
        experts=0,
        experts_per_token=0,
        norms_heads=True,
        biases_queries=False,
        longest=0,
        dtype="float32",
    )


def _required(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int):
        raise UnknownShape(f"its config.json has no {name}")
    return value
