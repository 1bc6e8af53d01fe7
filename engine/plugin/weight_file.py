"""A file of weights (safetensors), and whether it is the announced one and of the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

TIED_HEAD = "lm_head.weight"
CHUNK = 1 << 20
"""Bytes hashed at once."""


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The file's tensors by name, one after another, on the host."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


def check_file(path: Path, checksum: str) -> None:
    """Raises ValueError when the SHA-256 of the file's bytes is not `checksum` (hexadecimal), or
    there is no such file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ValueError(f"weights cannot be read: {error}") from None
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"weights {path} have checksum {digest.hexdigest()}, announced was {checksum}"
        )


def check_tensors(path: Path, expected: dict[str, list[int]]) -> None:
    """Raises ValueError when the file's tensors differ in name or shape from `expected`; an empty
    `expected` allows all."""
    found = dict(_shapes(path))
    wrong = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if expected and wrong:
        name = wrong[0]
        raise ValueError(
            f"weights {path} are of another model: {name} is {found.get(name, 'missing')} there "
            "and "
            f"{expected.get(name, 'missing')} in the engine ({len(wrong)} tensors differ)"
        )


def tensor_shapes(model: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a model directory's safetensors files, from their headers; empty if
    there are none. A language-model head that is tied to the embeddings is left out: some models
    have it in their files, too, and it is never published."""
    shapes = {
        name: shape for path in sorted(model.glob("*.safetensors")) for name, shape in _shapes(path)
    }
    config = model / "config.json"
    if config.exists() and json.loads(config.read_text()).get("tie_word_embeddings"):
        shapes.pop(TIED_HEAD, None)
    return shapes


def _shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            yield name, list(file.get_slice(name).get_shape())
