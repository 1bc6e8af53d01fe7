"""The part of a module's weights that one worker holds, where several share a model.

Tensor parallelism slices a matrix by rows (the outputs), or by columns (the inputs). vLLM's layers
say which by their attributes: vllm/model_executor/layers/linear.py, vocab_parallel_embedding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


def local_weight(module: Any, parts: Sequence[Tensor]) -> Tensor:
    """Return this worker's part of a module's weights, of the file's tensors that it stacks.

    With one worker that is all of them, one below the other. `parts` are q, k and v for an
    attention's projection. A vocabulary may be padded in the module, and is not here.
    """
    if getattr(module, "tp_size", 1) == 1:
        return torch.cat(list(parts))
    if hasattr(module, "shard_indices"):
        rows = module.shard_indices
        return parts[0][rows.org_vocab_start_index : rows.org_vocab_end_index]
    if not hasattr(module, "input_size_per_partition"):  # each worker has all of it
        return torch.cat(list(parts))
    if module.input_size_per_partition < module.input_size:
        return parts[0].chunk(module.tp_size, dim=1)[module.tp_rank]
    return torch.cat(
        [
            part.chunk(module.tp_size // copies)[module.tp_rank // copies]
            for part, copies in zip(parts, _copies(module, len(parts)), strict=True)
        ]
    )


def _copies(module: Any, parts: int) -> list[int]:
    """Count the workers that hold each slice: several where there are fewer heads of k and v."""
    replicas = getattr(module, "num_kv_head_replicas", 1)
    return [1, *[replicas] * (parts - 1)]


class LocalExperts(NamedTuple):
    """The experts of a layer that a worker has, or its slice of them."""

    numbers: Tensor  # int64 [E], in the model
    gate_up: Tensor  # [E, 2 I, H]
    down: Tensor  # [E, H, I]


def local_experts(module: Any, gate_up: Tensor, down: Tensor) -> LocalExperts:
    """Return this worker's part of a layer's experts, of all [E, 2 I, H] and [E, H, I].

    With expert parallelism it has some of them whole, else a slice of each one's I inner features.
    """
    places = module.expert_map
    if places is None:
        numbers = torch.arange(len(gate_up))
    else:
        numbers = torch.nonzero(places >= 0).flatten().cpu()
        gate_up = gate_up[numbers]
        down = down[numbers]
    size = module.moe_config.tp_size
    if size > 1:
        rank = module.moe_config.tp_rank
        halves = [half.chunk(size, dim=1)[rank] for half in gate_up.chunk(2, dim=1)]
        gate_up = torch.cat(halves, dim=1)
        down = down.chunk(size, dim=2)[rank]
    return LocalExperts(numbers, gate_up, down)
