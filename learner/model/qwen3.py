"""Qwen3's forward pass for training, without what no trained token needs.

The numbers are the same as transformers'.

Of the last layer, only the trained positions have queries, an output and an MLP; the others are
there as keys and values alone. For a shallow policy with long prompts that is a third of the work
(docs/measurements/learning.md has the measurements).
"""

from __future__ import annotations

import functools
import types
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
)

_METHOD = "compute_for_training"
"""Name under which a layer has `compute_layer` as a method of its own (`bind_layer`)."""


class Chosen(NamedTuple):
    """The positions whose output is asked for."""

    rows: Tensor  # int64 [N]
    columns: Tensor  # int64 [N]
    queried: Tensor | None  # int64 [B, Q]: columns of each row that have queries; None: all have
    places: Tensor  # int64 [N]: of each position among the queries of its row


def applies_to(model: PreTrainedModel) -> TypeGuard[Qwen3ForCausalLM]:
    """Tell whether this file computes what `model` does: a Qwen3 without sliding windows."""
    if not isinstance(model, Qwen3ForCausalLM):
        return False
    return set(model.config.layer_types or ()) == {"full_attention"}


def bind_layer(layer: Qwen3DecoderLayer, *, compiled: bool = False) -> None:
    """Make `compute_layer` a method of a layer; around that of a sharded one, weights are gathered.

    `compiled`: by torch.compile, for all lengths alike.
    """
    compute = types.MethodType(compute_layer, layer)
    if compiled:
        compute = torch.compile(compute, dynamic=True)
    setattr(layer, _METHOD, compute)
    register_fsdp_forward_method(layer, _METHOD)


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
    shares_keys = model.config.num_key_value_heads != model.config.num_attention_heads
    for layer in decoder_layers(model):
        compute = getattr(layer, _METHOD, functools.partial(compute_layer, layer))
        chosen = None
        if layer is body.layers[-1]:
            chosen = choose(rows, columns, tokens.shape)
        if model.is_gradient_checkpointing:
            hidden = checkpoint(compute, hidden, cos, sin, shares_keys, chosen, use_reentrant=False)
        else:
            hidden = compute(hidden, cos, sin, shares_keys, chosen)
    return _normalize(body.norm, hidden)


def compute_layer(
    layer: Qwen3DecoderLayer,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    shares_keys: bool,
    chosen: Chosen | None = None,
) -> Tensor:
    """Compute a layer's output [B, S, hidden] of its input [B, S, hidden].

    `cos` and `sin` [1, S, 1, head size / 2]. `shares_keys`: several heads of queries have the same
    keys. With `chosen`, only the output of these positions is computed, [N, hidden].
    """
    hidden = hidden.to(layer.input_layernorm.weight.dtype)
    normalized = _normalize(layer.input_layernorm, hidden)
    if chosen is None:
        attended = _attention(layer.self_attn, normalized, cos, sin, shares_keys)
    else:
        attended = _attention(layer.self_attn, normalized, cos, sin, shares_keys, chosen.queried)[
            chosen.rows, chosen.places
        ]
        hidden = hidden[chosen.rows, chosen.columns]
    hidden = hidden + layer.self_attn.o_proj(attended)
    return hidden + layer.mlp(_normalize(layer.post_attention_layernorm, hidden))


def choose(rows: Tensor, columns: Tensor, shape: torch.Size) -> Chosen:
    """Choose positions (rows [N], columns [N]) of `shape` (B, S), and the columns with queries.

    All columns have queries where half of a row's or more are chosen: causal attention leaves out
    the other half of the pairs, a mask does not. So they have on a GPU: to count is to wait for the
    device, and attention with a mask has slower kernels there.
    """
    if columns.device.type != "cpu":
        return Chosen(rows, columns, None, columns)
    counts = torch.bincount(rows, minlength=shape[0])
    most = int(counts.max())
    if not 0 < 2 * most < shape[1]:
        return Chosen(rows, columns, None, columns)
    by_row = torch.argsort(rows, stable=True)
    places = torch.empty_like(rows)
    places[by_row] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows[by_row]]
    queried = torch.zeros(shape[0], most, dtype=torch.int64)
    queried[rows, places] = columns
    return Chosen(rows, columns, queried, places)


def decoder_layers(model: Qwen3ForCausalLM) -> list[Qwen3DecoderLayer]:
    """The layers as what they are, which their `ModuleList` does not declare."""
    return cast(list[Qwen3DecoderLayer], list(model.model.layers))


def _attention(
    block: Qwen3Attention,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    shares_keys: bool,
    queried: Tensor | None = None,
) -> Tensor:
    """Compute causal attention over x [B, S, hidden], before its output projection.

    Returns [B, S, heads * head size], or [B, Q, ...] of the columns `queried` [B, Q] alone.
    """
    heads = (*x.shape[:-1], -1, block.head_dim)
    key = _rotate(_normalize(block.k_norm, block.k_proj(x).view(heads)), cos, sin)
    value = block.v_proj(x).view(heads)
    visible = None
    if queried is not None:
        x = x.take_along_dim(queried[..., None], dim=1)
        cos = cos[0, queried]
        sin = sin[0, queried]
        visible = (torch.arange(key.shape[1]) <= queried[..., None])[:, None]
    query = block.q_proj(x).view(*x.shape[:-1], -1, block.head_dim)
    query = _rotate(_normalize(block.q_norm, query), cos, sin)
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
        enable_gqa=shares_keys,
    )
    return attended.transpose(1, 2).flatten(2)


def _normalize(norm: Qwen3RMSNorm, x: Tensor) -> Tensor:
    """Normalize in the precision of the norm's weight, which is that of what comes out."""
    x = x.to(norm.weight.dtype)
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, S, heads, head size] by its positions (Su et al. 2021, §3.2).

    cos and sin are [1, S, 1, head size / 2].
    """
    cos = cos.to(x.dtype)
    sin = sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
