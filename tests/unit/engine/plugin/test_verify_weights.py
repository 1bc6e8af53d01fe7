"""Comparison of what an engine serves with the file it was given: packed, quantized, sliced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from engine.plugin.verify_weights import compare_with_file

WIDTH = 64


class EightBitMethod:
    """A layer of 8-bit weights and inputs, scaled by their largest: what vLLM's fp8 computes."""

    @staticmethod
    def apply(layer: torch.nn.Module, x: torch.Tensor, bias: None) -> torch.Tensor:
        inputs, scale = to_eight_bits(x)
        return (inputs.float() * scale) @ (layer.weight.float() * layer.weight_scale)


def to_eight_bits(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return (tensor / scale).to(torch.float8_e4m3fn), scale


def eight_bit_layer(weight: torch.Tensor) -> torch.nn.Module:
    """The layer as vLLM keeps it: transposed, so that kernels read it in order."""
    layer = torch.nn.Module()
    quantized, layer.weight_scale = to_eight_bits(weight.T.contiguous())
    layer.weight = torch.nn.Parameter(quantized, requires_grad=False)
    layer.params_dtype = torch.bfloat16
    layer.quant_method = EightBitMethod
    return layer


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(3 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))


def test_compare_with_file_tries_a_quantized_layer_by_its_outputs(
    weight: torch.Tensor, tmp_path: Path
) -> None:
    save_file({"m.proj.weight": weight}, tmp_path / "w")
    model = torch.nn.Module()
    model.m = torch.nn.Module()
    model.m.proj = eight_bit_layer(weight)
    assert compare_with_file(model, tmp_path / "w") == 1


@pytest.mark.parametrize("wrong", ["of another model", "rows in another order", "a block is old"])
def test_compare_with_file_finds_wrong_weights_of_a_quantized_layer(
    weight: torch.Tensor, tmp_path: Path, wrong: str
) -> None:
    save_file({"m.proj.weight": weight}, tmp_path / "w")
    held = weight.roll(1, 0)
    if wrong == "of another model":
        held = torch.randn(weight.shape)
    elif wrong == "a block is old":
        held = weight.clone()
        held[:WIDTH] = 0.0
    model = torch.nn.Module()
    model.m = torch.nn.Module()
    model.m.proj = eight_bit_layer(held)
    with pytest.raises(ValueError, match=r"m\.proj does not hold the weights of the file"):
        compare_with_file(model, tmp_path / "w")


@pytest.mark.parametrize("rank", [0, 1])
def test_compare_with_file_takes_a_workers_slice(
    weight: torch.Tensor, tmp_path: Path, rank: int
) -> None:
    save_file({"m.proj.weight": weight}, tmp_path / "w")
    model = torch.nn.Module()
    model.m = torch.nn.Module()
    layer = model.m.proj = torch.nn.Module()
    layer.tp_size = 2
    layer.tp_rank = rank
    layer.input_size = WIDTH
    layer.input_size_per_partition = WIDTH // 2
    layer.weight = torch.nn.Parameter(weight.chunk(2, dim=1)[rank].clone())
    assert compare_with_file(model, tmp_path / "w") == 1
    layer.weight.data[5, 3] += 1.0
    with pytest.raises(ValueError, match=r"m\.proj does not hold"):
        compare_with_file(model, tmp_path / "w")


class ExpertsMethod:
    """Experts as vLLM calls them: each input goes to one of them."""

    is_monolithic = False

    @staticmethod
    def apply(*, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input):
        out = torch.empty_like(x)
        for row, expert in enumerate(topk_ids[:, 0].tolist()):
            gate, up = (layer.w13_weight[expert] @ x[row]).chunk(2)
            out[row] = layer.w2_weight[expert] @ (torch.nn.functional.silu(gate) * up)
        return out * topk_weights


def experts_layer(gate_up: torch.Tensor, down: torch.Tensor) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.w13_weight = torch.nn.Parameter(gate_up.clone())
    layer.w2_weight = torch.nn.Parameter(down.clone())
    layer.params_dtype = torch.float32
    layer.expert_map = None
    layer.activation = SimpleNamespace(value="silu")
    layer.moe_config = SimpleNamespace(tp_size=1, tp_rank=0)
    layer.quant_method = ExpertsMethod
    return layer


@pytest.mark.parametrize("changed", [None, "w13_weight", "w2_weight"])
def test_compare_with_file_tries_every_expert(tmp_path: Path, changed: str | None) -> None:
    random = torch.Generator().manual_seed(1)
    gate_up = torch.randn(3, 8, 6, generator=random)
    down = torch.randn(3, 6, 4, generator=random)
    save_file({"m.experts.gate_up_proj": gate_up, "m.experts.down_proj": down}, tmp_path / "w")
    model = torch.nn.Module()
    model.m = torch.nn.Module()
    model.m.experts = torch.nn.Module()
    layer = model.m.experts.routed_experts = experts_layer(gate_up, down)
    if changed is None:
        assert compare_with_file(model, tmp_path / "w") == 1
        return
    with torch.no_grad():
        getattr(layer, changed)[2, 1, 3] += 1.0
    with pytest.raises(ValueError, match="routed_experts does not hold the weights of the file"):
        compare_with_file(model, tmp_path / "w")


class Packed(torch.nn.Module):
    """A linear layer as vLLM keeps it on a CPU.

    It has an empty parameter, and a function that has the weight.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0))
        self.cpu_linear = lambda x, _weight, _bias: x @ weight.T


class Served(torch.nn.Module):
    """A model as vLLM holds it: an embedding as it is, q and k stacked into one packed layer."""

    packed_modules_mapping: ClassVar = {"qk_proj": ["q_proj", "k_proj"]}

    def __init__(self, file: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding.from_pretrained(file["embed.weight"])
        self.qk_proj = Packed(torch.cat([file["q_proj.weight"], file["k_proj.weight"]]))


@pytest.fixture
def file() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embed.weight": torch.randn(7, 8),
        "q_proj.weight": torch.randn(8, 8),
        "k_proj.weight": torch.randn(4, 8),
    }


def rooted(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in file.items()}


def served(file: dict[str, torch.Tensor]) -> torch.nn.Module:
    outer = torch.nn.Module()
    outer.packed_modules_mapping = Served.packed_modules_mapping
    outer.model = Served(file)
    return outer


def test_a_model_that_holds_the_file_passes(file: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(rooted(file), tmp_path / "w")
    assert compare_with_file(served(file), tmp_path / "w") == 2


@pytest.mark.parametrize("changed", ["embed.weight", "q_proj.weight", "k_proj.weight"])
def test_one_changed_weight_is_found(
    file: dict[str, torch.Tensor], tmp_path: Path, changed: str
) -> None:
    save_file(rooted(file), tmp_path / "w")
    other = dict(file)
    other[changed] = file[changed].clone()
    other[changed][1, 2] += 0.05
    with pytest.raises(ValueError, match="does not hold the weights of the file"):
        compare_with_file(served(other), tmp_path / "w")


def test_a_comparison_that_compares_nothing_is_an_error(
    file: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(file, tmp_path / "w")
    with pytest.raises(ValueError, match="none of the weights"):
        compare_with_file(torch.nn.Module(), tmp_path / "w")


@pytest.mark.parametrize("tied", [True, False])
def test_compare_with_file_compares_the_head_with_its_own_or_the_embeddings(
    tmp_path: Path, tied: bool
) -> None:
    embeddings = torch.arange(12.0).reshape(4, 3)
    head = embeddings if tied else embeddings + 100
    tensors = {"model.embed_tokens.weight": embeddings}
    if not tied:
        tensors["lm_head.weight"] = head
    save_file(tensors, tmp_path / "w")
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.embed_tokens = torch.nn.Embedding.from_pretrained(embeddings)
    model.lm_head = torch.nn.Linear(3, 4, bias=False)
    model.lm_head.weight.data = head.clone()
    assert compare_with_file(model, tmp_path / "w") == 2
    model.lm_head.weight.data[1, 1] += 1.0
    with pytest.raises(ValueError, match="lm_head does not hold the weights of the file"):
        compare_with_file(model, tmp_path / "w")
