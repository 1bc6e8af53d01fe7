"""Checkpoints: a Hugging Face directory that anything can load, and beside the weights what
training needs to go on.

    <run>/checkpoints/000020/  config.json  model.safetensors  tokenizer.json  …
                               training_state/  state.json  contents.json  optimizer.pt  explored.npz
                                                (adapters.safetensors)  (critic.pt)  (reference/)

One is written under another name and renamed when it is whole, so whatever bears a number can be
loaded; unless the machine has lost power, or a copy was broken off: learner/checkpoint_damage.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from learner.checkpoint_damage import DAMAGED, STATE, numbered_checkpoints, write_contents
from learner.model.critic import Critic
from learner.model.lora import adapter_tensors
from learner.model.sharding import (
    full_optimizer_state,
    full_state_dict,
    full_tensor,
    load_optimizer_state,
)
from learner.ranks import Ranks
from protocol.files import atomic_replace
from telemetry.analysis.exploration import Exploration

Name = TypeVar("Name", bound=Hashable)

REFERENCE = "reference"
CRITIC = "critic.pt"
ADAPTERS = "adapters.safetensors"
EXPLORED = "explored.npz"
SET_ASIDE = "-collapsed"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


class IntakeState(msgspec.Struct, frozen=True, kw_only=True):
    """What the learner had taken in: all groups below `next_group`, and some above it, are in the
    weights, or dropped."""

    log_position: int = (
        0  # offset in the episode log of the first record that may not be in the weights
    )
    next_group: int = 0
    trained_ahead: list[int] = []  # groups above that are in the weights
    dropped_ahead: list[int] = []  # groups above that were dropped
    next_evaluation: int = 0
    dropped: dict[str, int] = {}  # of the groups that have left, what is in no update's figures


class Evaluated(msgspec.Struct, frozen=True):
    """A checkpoint that was evaluated."""

    update: int
    success: float


class TrainingState(msgspec.Struct, frozen=True, kw_only=True):
    """All that is not a tensor."""

    update: int = 0  # updates so far; also the version of the weights
    intake: IntakeState = IntakeState()
    tokens: int = 0  # generated for the batches so far (run.max_tokens)
    began: float = 0.0  # seconds of the run before its first batch
    rng: dict = {}  # state of numpy's bit generator
    best: Evaluated | None = None
    rollbacks: int = 0  # times training has gone back to an earlier checkpoint
    # the controller's state (JSON) when the engines began to run the last weights that it has told
    # us of
    control: str = ""


class ExtraState(NamedTuple):
    """What a checkpoint holds beside the policy and its optimizer, as far as there is any."""

    reference: PreTrainedModel | None = None  # the policy that the model is held to
    critic: Critic | None = None
    exploration: Exploration | None = None


def checkpoints_dir(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints"


def save(
    run_dir: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    tokenizer_from: Path,
    beside: ExtraState,
    ranks: Ranks | None = None,
    fsync: bool = False,
) -> Path:
    """Write a checkpoint, replacing one of the same update; with several ranks, all must ask, and
    rank 0 writes.

    `tokenizer_from`: the directory the policy was loaded from. `fsync`: it survives the machine,
    too, once this returns. OSError, with nothing left of it, if the disk is full.
    """
    ranks = ranks or Ranks()
    final = checkpoints_dir(run_dir) / f"{state.update:06d}"
    weights = _on_host(full_state_dict(model), ranks)
    moments = _on_host(full_optimizer_state(optimizer), ranks)
    adapters = _on_host(
        ((name, full_tensor(tensor)) for name, tensor in adapter_tensors(model).items()), ranks
    )
    held_to = (
        _on_host(full_state_dict(beside.reference), ranks) if beside.reference is not None else None
    )
    if ranks.rank:
        ranks.barrier()
        return final
    for left in final.parent.glob(".*-*"):  # by a process that was killed in the middle of one
        shutil.rmtree(left, ignore_errors=True)
    unfinished = final.parent / f".{final.name}-{os.getpid()}"
    with atomic_replace(final, unfinished, "run.dir"):
        (unfinished / STATE).mkdir(parents=True)
        save_policy(unfinished, model, tokenizer_from, weights)
        torch.save(moments, unfinished / STATE / "optimizer.pt")
        if adapters:
            save_file(adapters, unfinished / STATE / ADAPTERS)
        if beside.reference is not None:
            beside.reference.save_pretrained(unfinished / STATE / REFERENCE, state_dict=held_to)
        if beside.critic is not None:
            torch.save(beside.critic.state(), unfinished / STATE / CRITIC)
        if beside.exploration is not None:
            seen = {
                name: np.fromiter(getattr(beside.exploration, name), np.uint64)
                for name in ("states", "pairs")
            }
            np.savez(
                unfinished / STATE / EXPLORED,
                **seen,
                divisors=list(beside.exploration.divisors.values()),
            )
        write_contents(unfinished)
        (unfinished / STATE / "state.json").write_bytes(msgspec.json.encode(state))
        if fsync:
            for path in (*unfinished.rglob("*"), unfinished):
                _to_disk(path)
        if final.exists():
            # A directory cannot replace one that is not empty: for a moment there is none of this
            # number, the one before it is whole.
            shutil.rmtree(final)
        os.replace(unfinished, final)
        if fsync:
            _to_disk(final.parent)
    ranks.barrier()
    return final


def rewrite_state(directory: Path, state: TrainingState, fsync: bool = False) -> None:
    """Say something else of a checkpoint whose tensors are as they were.

    OSError if the disk is full; the old state stays then.
    """
    final = directory / STATE / "state.json"
    unfinished = final.with_name(f".{final.name}")
    with atomic_replace(final, unfinished, "run.dir"):
        unfinished.write_bytes(msgspec.json.encode(state))
        if fsync:
            _to_disk(unfinished)
        os.replace(unfinished, final)


def prune(run_dir: Path, newest: int, every: int, needed: Container[int]) -> None:
    """Remove a run's checkpoints but for the `newest`, those of updates that are multiples of
    `every` (0: none are), and those that are `needed`; of those that were set aside, all but the
    newest. Nothing if `newest` is 0.

    What is removed loses its number first: whatever bears one can be loaded.
    """
    if not newest:
        return
    found = by_update(run_dir)
    old = sorted(found)[:-newest]
    gone = [
        found[number]
        for number in old
        if number not in needed and not (every and number % every == 0)
    ]
    for suffix in (SET_ASIDE, DAMAGED):
        gone += sorted(checkpoints_dir(run_dir).glob(f"*{suffix}"))[:-newest]
    for path in gone:
        removed = path.with_name(f".{path.name}-{os.getpid()}")
        os.replace(path, removed)
        shutil.rmtree(removed, ignore_errors=True)


def _on_host(tensors: Iterable[tuple[Name, Tensor]], ranks: Ranks) -> dict[Name, Tensor]:
    """All of them, in the memory of rank 0's machine; nothing on other ranks.

    One by one: what is sharded may not fit on a device.
    """
    kept = {}
    for name, tensor in tensors:
        if not ranks.rank:
            kept[name] = tensor.cpu()
    return kept


def _to_disk(path: Path) -> None:
    """A file's bytes, a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_policy(
    directory: Path,
    model: PreTrainedModel,
    tokenizer_from: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """The weights (float32; the model's, or these in its place) and the configuration, with the
    tokenizer's and whatever other small files it came with."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in Path(tokenizer_from).iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copy(file, directory / file.name)
    model.save_pretrained(directory, state_dict=weights)


def load(directory: Path, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restore an optimizer, built with the settings of now, and return the rest.

    The weights: `load_policy(directory)`, from which `read_adapters(directory)` come out again.
    """
    load_optimizer_state(
        optimizer,
        torch.load(directory / STATE / "optimizer.pt", map_location="cpu", weights_only=True),
    )
    return read_state(directory)


def read_state(directory: Path) -> TrainingState:
    """What a checkpoint says of itself."""
    return msgspec.json.decode((directory / STATE / "state.json").read_bytes(), type=TrainingState)


def load_critic(directory: Path, critic: Critic) -> None:
    """Restore a value head; it stays as it is if the checkpoint has none, since its run had
    none."""
    path = directory / STATE / CRITIC
    if path.exists():
        critic.load(torch.load(path, map_location="cpu", weights_only=True))


def read_adapters(directory: Path) -> dict[str, Tensor]:
    """The checkpoint's adapters (`learner.model.lora.adapter_tensors`); empty if it has none."""
    path = directory / STATE / ADAPTERS
    return load_file(path) if path.exists() else {}


def load_exploration(directory: Path) -> Exploration:
    """What the run had seen when the checkpoint was written."""
    path = directory / STATE / EXPLORED
    if not path.exists():
        return Exploration()
    with np.load(path) as seen:
        return Exploration(
            seen["states"].tolist(), seen["pairs"].tolist(), seen["divisors"].tolist()
        )


def reference_dir(directory: Path) -> Path | None:
    """Where the checkpoint's reference policy is, if it has one."""
    path = directory / STATE / REFERENCE
    return path if path.exists() else None


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = by_update(run_dir)
    return found[max(found)] if found else None


def by_update(run_dir: Path) -> dict[int, Path]:
    """The checkpoints of a run.

    One that was never finished, or has been set aside, has no number for a name.
    """
    return numbered_checkpoints(Path(run_dir))


def archive_between(run_dir: Path, good: int, now: int) -> None:
    """Rename the checkpoints after `good` and before `now` to *-collapsed, so that nothing goes on
    from them."""
    for number, path in by_update(run_dir).items():
        if good < number < now:
            target = path.with_name(f"{path.name}{SET_ASIDE}")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(path, target)
