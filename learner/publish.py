"""Weights out: one safetensors file a version, which engines load while they run.

Copied between two updates, written beside the next.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from learner.model.sharding import full_state_dict
from protocol.files import atomic_replace
from protocol.messages import Transfer, weights_file

KEPT = 2
"""Of the newest versions stay on disk, whatever engines run."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "auto": torch.float32}


class Snapshot(NamedTuple):
    """Weights of one version: name -> tensor in the engine's precision, on the CPU or
    (engine.weights nccl) on the learner's GPU."""

    version: int
    tensors: dict[str, Tensor]


class Weights(NamedTuple):
    """A file of weights, or those that were sent over NCCL."""

    version: int
    path: Path | None
    checksum: str  # SHA-256 of the file's bytes, in hexadecimal
    size: int  # bytes
    seconds: float  # to write it, or until all engines had received it
    transfer: Transfer | None = None  # what was sent; there is no file then


class WeightWriter:
    """Writes weights to `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self.applied = -1
        """Newest version that all engines run.

        Later ones stay on disk, where engines load them one after another, however many updates the
        learner is ahead (it has no more batches than slots).
        """

    def write(self, snapshot: Snapshot) -> Weights:
        """`v<version>.safetensors`, which appears complete, under its final name.

        Tensors have the names of the Hugging Face checkpoint.

        It may be called in another thread than `snapshot`.
        """
        started = time.monotonic()
        path = weights_file(self._directory, snapshot.version)
        unfinished = self._directory / f".v{snapshot.version}-{os.getpid()}"
        with atomic_replace(path, unfinished, "run.weights_dir"):
            save_file(snapshot.tensors, unfinished)
            checksum = sha256_of(unfinished)
            os.replace(unfinished, path)
        self._remove_old()
        return Weights(
            snapshot.version, path, checksum, path.stat().st_size, time.monotonic() - started
        )

    def _remove_old(self) -> None:
        versions = sorted(
            self._directory.glob("v*.safetensors"), key=lambda path: int(path.stem[1:])
        )
        for path in versions[:-KEPT]:
            if int(path.stem[1:]) < self.applied:
                path.unlink(missing_ok=True)


def snapshot(
    model: PreTrainedModel,
    version: int,
    dtype: str,
    into: Snapshot | None = None,
    device: torch.device | str = "cpu",
) -> Snapshot:
    """A copy of the weights on `device`, which training does not change any more, in the engine's
    precision (`engine.dtype`; auto: float32, for the engine to cast). `into`: an earlier one whose
    memory may be used again, which is several times faster than fresh memory. With several ranks,
    all must ask."""
    weights = {}
    for name, tensor in full_state_dict(model):
        weights[name] = (
            into.tensors[name]
            if into
            else torch.empty(tensor.shape, dtype=_DTYPES[dtype], device=device)
        ).copy_(tensor)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(
            device
        )  # a copy from GPU to GPU has only been asked for, and another thread is to send it
    return Snapshot(version, weights)


def description(snapshot: Snapshot) -> Transfer:
    """The tensors as they will be sent: names, dtypes and shapes in their order."""
    tensors = snapshot.tensors.values()
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors]
    return Transfer(list(snapshot.tensors), dtypes, [list(tensor.shape) for tensor in tensors])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
