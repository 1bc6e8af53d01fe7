"""Tensors of a checkpoint: copied between two updates, written beside the next ones.

Each rank copies and writes the slices that it has. Weights become safetensors as anything reads
them; what training needs to go on becomes torch's distributed checkpoint. Either is read by any
number of ranks, each reading its own slices.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter
from transformers import PreTrainedModel

from learner.model.lora import adapter_tensors
from learner.model.sharding import (
    empty_optimizer_tensors,
    load_optimizer_state,
    merged_weights,
    optimizer_tensors,
)
from learner.ranks import Ranks

OPTIMIZER = "optimizer."
ADAPTERS = "adapters."
FILE_BYTES = 5 * 2**30
"""Size of a file of weights; one tensor may be larger."""

# Of one process by itself, which is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class CheckpointTensors(NamedTuple):
    """Copies, in the host's memory, of what this rank has of all tensors."""

    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    reference: dict[str, Tensor]


def copy_tensors(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, reference: PreTrainedModel | None
) -> CheckpointTensors:
    """Copy all that a checkpoint keeps, so that training may go on. All ranks must ask."""
    training = _prefixed(OPTIMIZER, optimizer_tensors(optimizer))
    training |= _prefixed(ADAPTERS, adapter_tensors(model))
    referred: dict[str, Tensor] = {}
    if reference is not None:
        referred = _copy(dict(merged_weights(reference)))
    return CheckpointTensors(_copy(dict(merged_weights(model))), _copy(training), referred)


def write_weights(
    directory: Path, model: PreTrainedModel, weights: dict[str, Tensor], ranks: Ranks
) -> None:
    """Write weights, as `copy_tensors` copied them, with the model's configuration.

    A group of ranks writes slices, which rank 0 puts together on the disk.
    """
    if not ranks.is_group:
        model.save_pretrained(directory, state_dict=weights)
        return
    writer = HuggingFaceStorageWriter(
        str(directory),
        fqn_to_index_mapping=_number_files(weights),
        save_distributed=True,
        enable_consolidation=True,
    )
    _save(weights, writer, ranks)
    if not ranks.rank:
        shutil.rmtree(writer.path)  # the slices
        model.config.save_pretrained(directory)


def write_training(
    directory: Path, training: dict[str, Tensor], ranks: Ranks, fsync: bool = False
) -> None:
    """Write what training needs to go on, beside the weights; each rank has a file of its own."""
    _save(training, FileSystemWriter(directory, sync_files=fsync), ranks)


def read_optimizer(directory: Path, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Restore an optimizer of the same parameters; its settings stay those of now."""
    empty = empty_optimizer_tensors(optimizer, _read_shapes(directory, OPTIMIZER))
    tensors = _prefixed(OPTIMIZER, empty)
    load(tensors, storage_reader=FileSystemReader(directory), no_dist=not ranks.is_group)
    load_optimizer_state(optimizer, empty)


def read_adapters(directory: Path) -> dict[str, Tensor]:
    """Read adapters in full, as `adapter_tensors` named them; empty if there are none."""
    shapes = _read_shapes(directory, ADAPTERS)
    adapters = {name: torch.empty(shape) for name, shape in shapes.items()}
    if adapters:
        tensors = _prefixed(ADAPTERS, adapters)
        load(tensors, storage_reader=FileSystemReader(directory), no_dist=True)
    return adapters


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the host's memory, sliced as they are."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return cast(dict[str, Tensor], stager.stage(tensors))  # no future: that is not asked for
    finally:
        stager.close()


def _save(tensors: dict[str, Tensor], writer: StorageWriter, ranks: Ranks) -> None:
    """Write tensors. Raises what was raised first, on whatever rank."""
    try:
        save(
            tensors,
            storage_writer=writer,
            process_group=ranks.background_group,
            no_dist=not ranks.is_group,
        )
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from None


def _read_shapes(directory: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the stored tensors whose names begin so, by the rest of their names."""
    stored = FileSystemReader(directory).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): tuple(kept.size)
        for name, kept in stored.items()
        if name.startswith(prefix) and isinstance(kept, TensorStorageMetadata)
    }


def _number_files(weights: dict[str, Tensor]) -> dict[str, int]:
    """Deal weights, in their order, to files of FILE_BYTES, numbered from 1."""
    file_of = {}
    number = 1
    size_bytes = 0
    for name, weight in weights.items():
        added = weight.numel() * weight.element_size()
        if size_bytes and size_bytes + added > FILE_BYTES:
            number += 1
            size_bytes = 0
        file_of[name] = number
        size_bytes += added
    return file_of
