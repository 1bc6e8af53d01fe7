"""A file of weights (safetensors), and checks that it is the announced one of the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

TIED_HEAD = "lm_head.weight"


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the file's tensors by name, one after another, on the host."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


def check_file(path: Path, checksum: str) -> None:
    """Raise ValueError when the file is missing, or its SHA-256 is not `checksum` (hexadecimal)."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise ValueError(f"weights cannot be read: {error}") from None
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"weights {path} have checksum {digest.hexdigest()}, announced was {checksum}"
        )


def check_tensors(path: Path, expected: dict[str, list[int]]) -> None:
    """Raise ValueError when the file's tensors differ in name or shape from `expected`.

    An empty `expected` allows all.
    """
    shapes = dict(_read_shapes(path))
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
    if config.exists() and json.loads(config.read_text()).get("tie_word_embeddings"):
        shapes.pop(TIED_HEAD, None)
    return shapes


def _read_shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, list(file.get_slice(name).get_shape())
