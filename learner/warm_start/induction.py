"""Start a small policy with an induction circuit, which a pretrained language model has already.

An agent's turn is mostly copying: the thing that the task names, the place where it lies, the
action that is listed. Transformers do that with two attention heads (Olsson et al. 2022,
"In-context Learning and Induction Heads"): one notes at each token which token came before it, and
one in a later layer finds where the current token was followed by something before, and copies
that. From random weights this pair appears late, and costs most of a warm start. So the weights
begin with it, as Trockman & Kolter (2023, "Mimetic Initialization of Self-Attention Layers") begin
with other patterns that training is known to end in; all other branches begin at 0 and training may
change everything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from learner.model.qwen3 import decoder_layers

ROPE_THETA = 1e6
"""Qwen3's own base.

With it most pairs of a head's channels turn little within a prompt, so that tokens can be matched
by content.
"""

_POSITION_PAIRS = 3
"""Fastest pairs of channels, by which the first head finds its neighbor.

With more it is blunter; with fewer it confuses neighbors with other tokens.
"""
_CONTENT_FROM = 6
"""First pair of channels slow enough to compare contents with."""
_SHARPNESS = 2.0
"""Weight of the norms of queries and keys.

Their largest score is sqrt(head size) times its square.
"""
_COPY_GAIN = 3.0
"""Weight of the copied token in the residual stream, where a token's own embedding has 1."""


@torch.no_grad()
def start_with_induction(model: Qwen3ForCausalLM) -> None:
    """Overwrite weights of a model in place, so that it begins with the circuit.

    A model of a single layer cannot hold it and is left alone. The first head of the first layer
    becomes a previous-token head, that of the second layer matches and copies. What heads and MLPs
    write into the residual stream is 0 otherwise. Random parts come from torch's generator.
    """
    config = model.config
    if config.num_hidden_layers < 2:
        return
    layers = decoder_layers(model)
    for layer in layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.q_norm.weight.fill_(_SHARPNESS)
        layer.self_attn.k_norm.weight.fill_(_SHARPNESS)
    # Channel 0 of the residual stream is the same for all tokens: what the position head's queries
    # and keys are made of.
    model.model.embed_tokens.weight[:, 0] = 1.0
    now, before, copied = _draw_subspaces(config.hidden_size, config.head_dim)
    first = layers[0].self_attn
    second = layers[1].self_attn
    query, key = _match_previous_token(config.head_dim, ROPE_THETA)
    head = slice(0, config.head_dim)
    for projection, direction in ((first.q_proj, query), (first.k_proj, key)):
        projection.weight[head] *= 0.1
        projection.weight[head, 0] = direction
    first.v_proj.weight[head] = now
    first.o_proj.weight[:, head] = before.T
    second.q_proj.weight[head] = now
    second.k_proj.weight[head] = before
    second.v_proj.weight[head] = copied
    second.o_proj.weight[:, head] = _COPY_GAIN * copied.T


def _match_previous_token(size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return a query and a key [size] that match where the key is one position before the query.

    There their score, once rotated by position, is largest.
    """
    query = torch.zeros(size)
    key = torch.zeros(size)
    for pair in range(_POSITION_PAIRS):
        angle = theta ** (-2 * pair / size)
        key[pair] = 1.0
        query[pair] = math.cos(angle)
        query[size // 2 + pair] = -math.sin(angle)
    return query, key


def _draw_subspaces(hidden: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw three maps [size, hidden] onto orthogonal subspaces of the residual stream.

    They are for the current token as it is matched, the token before it, and the token as it is
    copied. None has channel 0. In a narrow model some of their rows are 0.
    """
    rank = min(size, (hidden - 1) // 3)
    basis = torch.zeros(3, size, hidden)
    rotation = _draw_rotation(hidden - 1)
    basis[:, size - rank :, 1:] = rotation[: 3 * rank].reshape(3, rank, hidden - 1)
    now, before, copied = basis
    slow = [pair % (size // 2) >= _CONTENT_FROM for pair in range(size)]
    now[~torch.tensor(slow)] = 0.0
    return now, before, copied


def _draw_rotation(size: int) -> Tensor:
    """Draw a random orthogonal matrix [size, size].

    On one thread, since the last bits depend on their number, and the cache of warm starts on the
    bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.linalg.qr(torch.randn(size, size)).Q
    finally:
        torch.set_num_threads(threads)
