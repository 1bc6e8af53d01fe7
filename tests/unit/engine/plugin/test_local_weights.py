"""A worker's part of a module's weights: our slices beside those of vLLM's own loaders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers import linear, vocab_parallel_embedding

from engine.plugin.local_weights import local_experts, local_weight

HIDDEN = 16
HEAD = 4


@pytest.fixture(
    params=[(0, 1), (0, 2), (1, 2), (3, 4)], ids=lambda place: f"{place[0]} of {place[1]}"
)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The rank of a worker and their number, as vLLM's layers ask for it."""
    rank, size = request.param
    group = SimpleNamespace(rank_in_group=rank, world_size=size)
    monkeypatch.setattr(parallel_state, "_TP", group)
    with set_current_vllm_config(VllmConfig()):
        yield rank, size


def load(layer: torch.nn.Module, **parts: torch.Tensor) -> torch.Tensor:
    """The layer's weight, loaded by its own loader: `whole`, or by the names of its parts."""
    layer.weight.data.zero_()
    for name, tensor in parts.items():
        shard = () if name == "whole" else ({"gate": 0, "up": 1}.get(name, name),)
        layer.weight.weight_loader(layer.weight, tensor, *shard)
    return layer.weight.data


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def test_local_weight_of_a_replicated_layer_is_all_of_it(place: tuple[int, int]) -> None:
    weight = random(6, HIDDEN)
    layer = linear.ReplicatedLinear(HIDDEN, 6, bias=False)
    assert torch.equal(local_weight(layer, [weight]), load(layer, whole=weight))


def test_local_weight_of_a_row_parallel_layer_is_vllms_slice(place: tuple[int, int]) -> None:
    weight = random(6, HIDDEN)
    layer = linear.RowParallelLinear(HIDDEN, 6, bias=False)
    assert torch.equal(local_weight(layer, [weight]), load(layer, whole=weight))


def test_local_weight_of_a_column_parallel_layer_is_vllms_slice(place: tuple[int, int]) -> None:
    weight = random(24, HIDDEN)
    layer = linear.ColumnParallelLinear(HIDDEN, 24, bias=False)
    assert torch.equal(local_weight(layer, [weight]), load(layer, whole=weight))


def test_local_weight_of_gate_and_up_is_vllms_slice(place: tuple[int, int]) -> None:
    gate = random(24, HIDDEN)
    up = random(25, HIDDEN)[:24]
    layer = linear.MergedColumnParallelLinear(HIDDEN, [24, 24], bias=False)
    assert torch.equal(local_weight(layer, [gate, up]), load(layer, gate=gate, up=up))


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_local_weight_of_an_attention_is_vllms_slice(place: tuple[int, int], kv_heads: int) -> None:
    """Also where there are fewer heads of keys and values than workers."""
    layer = linear.QKVParallelLinear(HIDDEN, HEAD, 8, kv_heads, bias=False)
    q = random(8 * HEAD, HIDDEN)
    k = random(kv_heads * HEAD, HIDDEN)
    v = k + 1
    assert torch.equal(local_weight(layer, [q, k, v]), load(layer, q=q, k=k, v=v))


def test_local_weight_of_a_vocabulary_is_vllms_slice(place: tuple[int, int]) -> None:
    weight = random(100, HIDDEN)
    layer = vocab_parallel_embedding.VocabParallelEmbedding(100, HIDDEN)
    held = load(layer, whole=weight)
    expected = local_weight(layer, [weight])
    assert torch.equal(expected, held[: len(expected)])
    assert not held[len(expected) :].any()


def moe(size: int, rank: int, places: list[int] | None = None) -> SimpleNamespace:
    """A layer of experts, as far as its slices go."""
    return SimpleNamespace(
        expert_map=None if places is None else torch.tensor(places),
        moe_config=SimpleNamespace(tp_size=size, tp_rank=rank),
    )


def test_local_experts_of_all_workers_together_are_the_experts() -> None:
    gate_up = random(4, 12, HIDDEN)
    down = random(5, HIDDEN, 6)[:4]
    slices = [local_experts(moe(3, rank), gate_up, down) for rank in range(3)]
    gates, ups = zip(*(part.gate_up.chunk(2, dim=1) for part in slices), strict=True)
    assert torch.equal(torch.cat([*gates, *ups], dim=1), gate_up)
    assert torch.equal(torch.cat([part.down for part in slices], dim=2), down)


def test_local_experts_with_expert_parallelism_are_the_workers_own_whole() -> None:
    gate_up = random(4, 12, HIDDEN)
    down = random(5, HIDDEN, 6)[:4]
    part = local_experts(moe(1, 0, places=[-1, 0, -1, 1]), gate_up, down)
    assert part.numbers.tolist() == [1, 3]
    assert torch.equal(part.gate_up, gate_up[[1, 3]])
    assert torch.equal(part.down, down[[1, 3]])
