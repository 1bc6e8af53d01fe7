"""A file of weights (safetensors), and checks that it is the announced one of the same model.

Mixtures of experts have two forms in files. A checkpoint has three matrices for each expert; a
model of transformers, which the learner publishes, has two tensors for all experts of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from protocol.model_json import read_model_json

TIED_HEAD = "lm_head.weight"

EXPERT = re.compile(r"(?P<layer>.*\.experts)\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight")
"""Name of a matrix of one expert."""

EXPERT_MATRICES = ("gate_proj", "up_proj", "down_proj")
GATE_UP = "gate_up_proj"
DOWN = "down_proj"


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the file's tensors by name, one after another, on the host."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


def check_tensors(path: Path, expected: dict[str, list[int]]) -> None:
    """Raise ValueError when the file's tensors differ in name or shape from `expected`.

    Experts may be in one form here and in the other one there. An empty `expected` allows all.
    """
    shapes = fuse_experts(dict(_read_shapes(path)))
    expected = fuse_experts(expected)
    wrong = sorted(
        name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)
    )
    if expected and wrong:
        name = wrong[0]
        raise ValueError(
            f"weights {path} are of another model: {name} is {shapes.get(name, 'missing')} there "
            "and "
            f"{expected.get(name, 'missing')} in the engine ({len(wrong)} tensors differ)"
        )


def fuse_experts(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the shapes as they are where all experts of a layer are in two tensors.

    `L.experts.N.gate_proj.weight` and `up_proj` [I, H] become `L.experts.gate_up_proj`
    [experts, 2 I, H], and `down_proj` [H, I] becomes `L.experts.down_proj` [experts, H, I]. A layer
    whose experts are not all there and of one size is left as it is.
    """
    matrices: dict[str, dict[tuple[int, str], list[int]]] = {}
    for name, shape in shapes.items():
        match = EXPERT.fullmatch(name)
        if match is not None:
            layer = matrices.setdefault(match["layer"], {})
            layer[int(match["expert"]), match["matrix"]] = shape
    fused = dict(shapes)
    for layer, found in matrices.items():
        count = len(found) // len(EXPERT_MATRICES)
        gate = found.get((0, "gate_proj"), [])
        alike = {
            (expert, matrix): gate[::-1] if matrix == DOWN else gate
            for expert in range(count)
            for matrix in EXPERT_MATRICES
        }
        if found != alike:
            continue
        for expert, matrix in found:
            del fused[f"{layer}.{expert}.{matrix}.weight"]
        inner, hidden = gate
        fused[f"{layer}.{GATE_UP}"] = [count, 2 * inner, hidden]
        fused[f"{layer}.{DOWN}"] = [count, hidden, inner]
    return fused


def read_experts(
    file: Any, names: set[str], layer: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Read the experts of a layer (`...experts`), as [E, 2 I, H] and [E, H, I].

    `names` are those of the tensors in `file`, an open safetensors file. None if it has none of
    them.
    """
    if f"{layer}.{GATE_UP}" in names:
        return file.get_tensor(f"{layer}.{GATE_UP}"), file.get_tensor(f"{layer}.{DOWN}")
    gate_up = []
    down = []
    while f"{layer}.{len(down)}.{DOWN}.weight" in names:
        gate, up, last = (
            file.get_tensor(f"{layer}.{len(down)}.{matrix}.weight") for matrix in EXPERT_MATRICES
        )
        gate_up.append(torch.cat([gate, up]))
        down.append(last)
    if not down:
        return None
    return torch.stack(gate_up), torch.stack(down)


def tensor_shapes(model: Path) -> dict[str, list[int]]:
    """Read the shapes of the tensors in a model directory's safetensors files.

    They are empty if there are no files. A language-model head that is tied to the embeddings is
    left out: some models have it in their files, too, and it is never published.
    """
    shapes = {
        name: shape
        for path in sorted(model.glob("*.safetensors"))
        for name, shape in _read_shapes(path)
    }
    config = model / "config.json"
    if config.exists() and read_model_json(config).get("tie_word_embeddings"):
        shapes.pop(TIED_HEAD, None)
    return shapes


def _read_shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, list(file.get_slice(name).get_shape())
