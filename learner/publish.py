"""Weights out: one safetensors file a version, which engines load while they run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

KEPT = 2
"""Versions that stay on disk: the newest, and the one an engine may still be loading."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "auto": torch.float32}


class Publisher:
    """Writes weights to `directory` in the engine's precision (`engine.dtype`; auto: float32, for the engine to cast)."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._dtype = _DTYPES[dtype]

    def publish(self, model: PreTrainedModel, version: int) -> tuple[Path, str]:
        """Write `v<version>.safetensors`; returns its path and the SHA-256 of its bytes, in hexadecimal.

        The file appears complete, under its final name. Tensors have the names of the Hugging Face checkpoint.
        """
        path = self._directory / f"v{version}.safetensors"
        unfinished = self._directory / f".v{version}-{os.getpid()}"
        save_file(checkpoint_tensors(model, self._dtype), unfinished)
        checksum = sha256_of(unfinished)
        os.replace(unfinished, path)
        self._remove_old()
        return path, checksum

    def _remove_old(self) -> None:
        versions = sorted(self._directory.glob("v*.safetensors"), key=lambda path: int(path.stem[1:]))
        for path in versions[:-KEPT]:
            path.unlink(missing_ok=True)


def checkpoint_tensors(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights by their checkpoint names, on the CPU, contiguous; a tied language-model head is not named again."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
