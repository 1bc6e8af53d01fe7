"""Checkpoints: Hugging Face directories that anything can load, with what training needs to go on.

    <run>/checkpoints/000020/  config.json  model.safetensors  tokenizer.json  …
                               training_state/  state.json  contents.json  optimizer.pt
                                                explored.npz  (adapters.safetensors)  (critic.pt)
                                                (reference/)

One is written under another name and renamed when it is complete, so whatever bears a number can be
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
COLLAPSED = "-collapsed"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


class IntakeState(msgspec.Struct, frozen=True, kw_only=True):
    """The trajectories that the learner had taken in.

    All groups below `next_group`, and some above it, are in the weights, or dropped.
    """

    # offset in the episode log of the first record that may not be in the weights
    log_position: int = 0
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
    """The state of training, but for tensors."""

    update: int = 0  # updates so far; also the version of the weights
    intake: IntakeState = IntakeState()
    tokens: int = 0  # generated for the batches so far (run.max_tokens)
    began: float = 0.0  # seconds of the run before its first batch
    rng: dict = {}  # state of numpy's bit generator
    best: Evaluated | None = None
    rollbacks: int = 0  # times training has gone back to an earlier checkpoint
    # the controller's state (JSON) when engines began to run the last weights it has told us of
    control: str = ""


class ExtraState(NamedTuple):
    """State beside the policy and its optimizer, as far as there is any."""

    reference: PreTrainedModel | None = None  # the policy that the model is held to
    critic: Critic | None = None
    exploration: Exploration | None = None


def checkpoints_dir(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints"


class _Tensors(NamedTuple):
    """All tensors of a checkpoint, in full, in the memory of rank 0's machine."""

    weights: dict[str, Tensor]
    moments: dict[tuple[int, str], Tensor]
    adapters: dict[str, Tensor]
    reference: dict[str, Tensor]


def save(
    run_dir: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    tokenizer_from: Path,
    extra: ExtraState,
    ranks: Ranks | None = None,
    fsync: bool = False,
) -> Path:
    """Write a checkpoint, replacing one of the same update.

    With several ranks, all must ask, and rank 0 writes. `tokenizer_from`: the directory the policy
    was loaded from. `fsync`: it survives the machine, too, once this returns. OSError, with nothing
    left of it, if the disk is full.
    """
    ranks = ranks or Ranks()
    final = checkpoints_dir(run_dir) / f"{state.update:06d}"
    tensors = _collect_tensors(model, optimizer, extra, ranks)
    if ranks.rank:
        ranks.barrier()
        return final
    for abandoned in final.parent.glob(".*-*"):
        # by a process that was killed in the middle of one
        shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = final.parent / f".{final.name}-{os.getpid()}"
    with atomic_replace(final, unfinished, "run.dir"):
        (unfinished / STATE).mkdir(parents=True)
        save_policy(unfinished, model, tokenizer_from, tensors.weights)
        _write_training_state(unfinished / STATE, tensors, extra)
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


def _collect_tensors(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, extra: ExtraState, ranks: Ranks
) -> _Tensors:
    adapters = ((name, full_tensor(tensor)) for name, tensor in adapter_tensors(model).items())
    reference: dict[str, Tensor] = {}
    weights = _on_host(full_state_dict(model), ranks)
    moments = _on_host(full_optimizer_state(optimizer), ranks)
    adapters_on_host = _on_host(adapters, ranks)
    if extra.reference is not None:
        reference = _on_host(full_state_dict(extra.reference), ranks)
    return _Tensors(weights, moments, adapters_on_host, reference)


def _write_training_state(directory: Path, tensors: _Tensors, extra: ExtraState) -> None:
    """Write what training needs to go on, but for state.json."""
    torch.save(tensors.moments, directory / "optimizer.pt")
    if tensors.adapters:
        save_file(tensors.adapters, directory / ADAPTERS)
    if extra.reference is not None:
        extra.reference.save_pretrained(directory / REFERENCE, state_dict=tensors.reference)
    if extra.critic is not None:
        torch.save(extra.critic.state(), directory / CRITIC)
    if extra.exploration is not None:
        _save_exploration(directory / EXPLORED, extra.exploration)


def _save_exploration(file: Path, exploration: Exploration) -> None:
    np.savez(
        file,
        states=np.fromiter(exploration.states, np.uint64),
        pairs=np.fromiter(exploration.pairs, np.uint64),
        divisors=list(exploration.divisors.values()),
    )


def rewrite_state(directory: Path, state: TrainingState, fsync: bool = False) -> None:
    """Replace the state of a checkpoint whose tensors are as they were.

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
    """Remove a run's checkpoints but for the `newest` and those that are `needed`.

    Those of updates that are multiples of `every` stay, too (0: none do); of archived ones, only
    the newest. Nothing is removed if `newest` is 0. What is removed loses its number first:
    whatever bears one can be loaded.
    """
    if not newest:
        return
    checkpoints = by_update(run_dir)
    removable = [
        checkpoints[number]
        for number in sorted(checkpoints)[:-newest]
        if number not in needed and not (every and number % every == 0)
    ]
    for suffix in (COLLAPSED, DAMAGED):
        removable += sorted(checkpoints_dir(run_dir).glob(f"*{suffix}"))[:-newest]
    for path in removable:
        unnumbered = path.with_name(f".{path.name}-{os.getpid()}")
        os.replace(path, unnumbered)
        shutil.rmtree(unnumbered, ignore_errors=True)


def _on_host(tensors: Iterable[tuple[Name, Tensor]], ranks: Ranks) -> dict[Name, Tensor]:
    """Copy tensors to the memory of rank 0's machine; nothing on other ranks.

    One by one: what is sharded may not fit on a device.
    """
    on_host = {}
    for name, tensor in tensors:
        if not ranks.rank:
            on_host[name] = tensor.cpu()
    return on_host


def _to_disk(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk."""
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
    """Write weights and configuration, with the tokenizer and other small files it came with.

    The weights are float32: the model's, or these in its place.
    """
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
    """Read the state that a checkpoint was written in."""
    return msgspec.json.decode((directory / STATE / "state.json").read_bytes(), type=TrainingState)


def load_critic(directory: Path, critic: Critic) -> None:
    """Restore a value head; it stays as it is if the checkpoint has none, as its run had none."""
    path = directory / STATE / CRITIC
    if path.exists():
        critic.load(torch.load(path, map_location="cpu", weights_only=True))


def read_adapters(directory: Path) -> dict[str, Tensor]:
    """Read a checkpoint's adapters, as `adapter_tensors` returned them; empty if it has none."""
    path = directory / STATE / ADAPTERS
    if not path.exists():
        return {}
    return load_file(path)


def load_exploration(directory: Path) -> Exploration:
    """Read what the run had seen when the checkpoint was written."""
    path = directory / STATE / EXPLORED
    if not path.exists():
        return Exploration()
    with np.load(path) as seen:
        return Exploration(
            seen["states"].tolist(), seen["pairs"].tolist(), seen["divisors"].tolist()
        )


def reference_dir(directory: Path) -> Path | None:
    """Return the directory of the checkpoint's reference policy; None if it has none."""
    path = directory / STATE / REFERENCE
    if not path.exists():
        return None
    return path


def latest(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run; None without one."""
    checkpoints = by_update(run_dir)
    if not checkpoints:
        return None
    return checkpoints[max(checkpoints)]


def by_update(run_dir: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their updates.

    One that was never finished, or is archived, has no number for a name.
    """
    return numbered_checkpoints(Path(run_dir))


def archive_between(run_dir: Path, good: int, now: int) -> None:
    """Rename the checkpoints after `good` and before `now` to *-collapsed.

    So nothing goes on from them.
    """
    for number, path in by_update(run_dir).items():
        if good < number < now:
            target = path.with_name(f"{path.name}{COLLAPSED}")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(path, target)
