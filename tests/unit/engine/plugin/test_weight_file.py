"""Files of weights, as an engine checks them, and two forms of experts in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from engine.plugin.weight_file import (
    check_tensors,
    fuse_experts,
    read_experts,
    tensor_shapes,
)

sizes = st.integers(1, 5)


def split_shapes(layer: str, experts: int, inner: int, hidden: int) -> dict[str, list[int]]:
    """Shapes of a layer's experts as a checkpoint has them: three matrices for each."""
    matrices = {
        "gate_proj": [inner, hidden],
        "up_proj": [inner, hidden],
        "down_proj": [hidden, inner],
    }
    return {
        f"{layer}.{expert}.{matrix}.weight": shape
        for expert in range(experts)
        for matrix, shape in matrices.items()
    }


@given(experts=sizes, inner=sizes, hidden=sizes, layers=st.integers(1, 3))
def test_fuse_experts_of_a_checkpoint_gives_the_shapes_of_the_model(
    experts: int, inner: int, hidden: int, layers: int
) -> None:
    other = {"model.norm.weight": [hidden], "model.layers.0.mlp.gate.weight": [experts, hidden]}
    split = dict(other)
    fused = dict(other)
    for number in range(layers):
        layer = f"model.layers.{number}.mlp.experts"
        split |= split_shapes(layer, experts, inner, hidden)
        fused[f"{layer}.gate_up_proj"] = [experts, 2 * inner, hidden]
        fused[f"{layer}.down_proj"] = [experts, hidden, inner]
    assert fuse_experts(split) == fused
    assert fuse_experts(fused) == fused


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("m.experts.1.up_proj.weight", None),
        ("m.experts.1.up_proj.weight", [2, 4]),
        ("m.experts.1.down_proj.weight", [2, 3]),
        ("m.experts.5.gate_proj.weight", [2, 3]),
    ],
    ids=["a matrix is missing", "of another size", "not transposed", "of an expert alone"],
)
def test_fuse_experts_that_are_not_all_alike_leaves_them(
    name: str, shape: list[int] | None
) -> None:
    shapes = split_shapes("m.experts", 3, 2, 3)
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    assert fuse_experts(shapes) == shapes


def test_fuse_experts_of_an_expert_without_matrices_leaves_it() -> None:
    shapes = {"m.experts.0.w1.weight": [2, 3]}
    assert fuse_experts(shapes) == shapes


@pytest.fixture
def experts() -> dict[str, torch.Tensor]:
    """Two experts of a layer, as a checkpoint has them."""
    random = torch.Generator().manual_seed(0)
    shapes = split_shapes("m.experts", 2, 4, 3)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def fuse(experts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, as the model has them."""
    first = [experts[f"m.experts.{i}.gate_proj.weight"] for i in range(2)]
    second = [experts[f"m.experts.{i}.up_proj.weight"] for i in range(2)]
    pairs = zip(first, second, strict=True)
    return {
        "m.experts.gate_up_proj": torch.stack([torch.cat(pair) for pair in pairs]),
        "m.experts.down_proj": torch.stack(
            [experts[f"m.experts.{i}.down_proj.weight"] for i in range(2)]
        ),
    }


def test_read_experts_gives_the_same_of_both_forms(
    experts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    fused = fuse(experts)
    for tensors in (experts, fused):
        save_file(tensors, tmp_path / "w")
        with safe_open(tmp_path / "w", framework="pt") as file:
            read = read_experts(file, set(file.keys()), "m.experts")
            assert read_experts(file, set(file.keys()), "another.experts") is None
        assert torch.equal(read[0], fused["m.experts.gate_up_proj"])
        assert torch.equal(read[1], fused["m.experts.down_proj"])


def test_check_tensors_takes_experts_in_either_form_and_no_others(
    experts: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    forms = (experts, fuse(experts))
    for tensors in forms:
        save_file(tensors, tmp_path / "w")
        for other in forms:
            check_tensors(tmp_path / "w", {name: list(t.shape) for name, t in other.items()})
        with pytest.raises(ValueError, match="another model"):
            check_tensors(tmp_path / "w", split_shapes("m.experts", 3, 4, 3))


def test_tensors_must_be_those_of_the_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    expected = tensor_shapes(tmp_path)
    check_tensors(tmp_path / "model.safetensors", expected)
    for other in (
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
        {"b": torch.zeros(2, 3)},
    ):
        save_file(other, tmp_path / "other.bin")
        with pytest.raises(ValueError, match="another model"):
            check_tensors(tmp_path / "other.bin", expected)


def test_a_tied_head_in_the_models_files_is_not_expected_to_be_published(tmp_path: Path) -> None:
    save_file(
        {"lm_head.weight": torch.zeros(2, 3), "a": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    assert set(tensor_shapes(tmp_path)) == {"lm_head.weight", "a"}
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert set(tensor_shapes(tmp_path)) == {"a"}
