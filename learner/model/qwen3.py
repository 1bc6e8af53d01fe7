"""Qwen3's forward pass for training, without what no trained token needs.

The numbers are the same as transformers'.

Of the last layer, only the trained positions have a query, an output and an MLP; the other
positions are there as keys and values alone. For a shallow policy with long prompts that is a third
of the work (docs/measurements/learning.md has the measurements).
"""

from __future__ import annotations

from typing import TypeGuard, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
)


def applies_to(model: PreTrainedModel) -> TypeGuard[Qwen3ForCausalLM]:
    """Tell whether this file computes what `model` does.

    It does for a Qwen3 without sliding windows, unsharded (shards are gathered by the layers' own
    forward passes) and with its activations (which layers forget in theirs).
    """
    if not isinstance(model, Qwen3ForCausalLM) or model.is_gradient_checkpointing:
        return False
    is_sharded = any(
        isinstance(parameter, DTensor) for parameter in model.model.layers.parameters()
    )
    return set(model.config.layer_types or ()) == {"full_attention"} and not is_sharded


def hidden_states(model: Qwen3ForCausalLM, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute final hidden states [N, hidden] of tokens [B, S], padded on the right.

    They are those at the positions (rows [N], columns [N]).
    """
    body = model.model
    hidden = body.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    cos, sin = (
        half[:, :, None, : half.shape[-1] // 2] for half in body.rotary_emb(hidden, positions)
    )
    for layer in decoder_layers(model):
        last = layer is body.layers[-1]
        attended = _attention(layer.self_attn, _normalize(layer.input_layernorm, hidden), cos, sin)
        if last:
            attended = attended[rows, columns]
            hidden = hidden[rows, columns]
        hidden = hidden + layer.self_attn.o_proj(attended)
        hidden = hidden + layer.mlp(_normalize(layer.post_attention_layernorm, hidden))
    return _normalize(body.norm, hidden)


def decoder_layers(model: Qwen3ForCausalLM) -> list[Qwen3DecoderLayer]:
    """The layers as what they are, which their `ModuleList` does not declare."""
    return cast(list[Qwen3DecoderLayer], list(model.model.layers))


def _attention(block: Qwen3Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute causal attention over x [B, S, hidden], before its output projection.

    It is [B, S, heads * head size].
    """
    heads = (*x.shape[:-1], -1, block.head_dim)
    query = _rotate(_normalize(block.q_norm, block.q_proj(x).view(heads)), cos, sin)
    key = _rotate(_normalize(block.k_norm, block.k_proj(x).view(heads)), cos, sin)
    value = block.v_proj(x).view(heads)
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return attended.transpose(1, 2).flatten(2)


def _normalize(norm: Qwen3RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, S, heads, head size] by its positions (Su et al. 2021, §3.2).

    cos and sin are [1, S, 1, head size / 2].
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
