"""Checkpoints: Hugging Face directories that anything can load, with what training needs to go on.

    <run>/checkpoints/000020/  config.json  model.safetensors  tokenizer.json  …
                               training_state/  state.json  contents.json  explored.npz  tensors/
                                                (critic.pt)  (reference/)

One is written under another name and renamed when it is complete, so whatever bears a number can be
loaded; unless the machine has lost power, or a copy was broken off: learner/checkpoint_damage.py.
Several ranks write one together, and any number of ranks reads it (learner/checkpoint_tensors.py).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from learner import checkpoint_tensors
from learner.checkpoint_damage import DAMAGED, STATE, numbered_checkpoints, write_contents
from learner.checkpoint_tensors import (
    CheckpointTensors,
    copy_tensors,
    read_optimizer,
    write_training,
    write_weights,
)
from learner.model.critic import Critic
from learner.ranks import Ranks
from protocol.files import atomic_replace
from telemetry.analysis.exploration import Exploration

TENSORS = "tensors"
REFERENCE = "reference"
CRITIC = "critic.pt"
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


class _Explored(NamedTuple):
    """An Exploration as arrays."""

    states: np.ndarray
    pairs: np.ndarray
    divisors: np.ndarray


@dataclass(frozen=True)
class StagedCheckpoint:
    """A checkpoint in memory: what a rank writes, or has copied for rank 0 to write."""

    directory: Path  # which it will be
    tokenizer_from: Path  # the directory that the policy was loaded from
    model: PreTrainedModel  # for its configuration
    reference: PreTrainedModel | None  # likewise
    tensors: CheckpointTensors
    state: TrainingState
    critic: dict | None
    explored: _Explored | None


def stage(
    run_dir: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    tokenizer_from: Path,
    extra: ExtraState,
) -> StagedCheckpoint:
    """Copy all that a checkpoint holds, so that training may go on. All ranks must ask."""
    critic = None
    if extra.critic is not None:
        critic = copy.deepcopy(extra.critic.state())
    explored = None
    if extra.exploration is not None:
        explored = _copy_exploration(extra.exploration)
    return StagedCheckpoint(
        checkpoints_dir(run_dir) / f"{state.update:06d}",
        tokenizer_from,
        model,
        extra.reference,
        copy_tensors(model, optimizer, extra.reference),
        state,
        critic,
        explored,
    )


def write(staged: StagedCheckpoint, ranks: Ranks, fsync: bool = False) -> Path:
    """Write a checkpoint, replacing one of the same update; return its directory.

    With several ranks, all must ask, and their disk is the same. It may be called beside training,
    in another thread. `fsync`: it survives the machine, too, once this returns. OSError, with
    nothing left of it, if the disk is full.
    """
    final = staged.directory
    unfinished = final.parent / f".{final.name}-unfinished"
    if ranks.rank:
        ranks.barrier_beside()  # until there is a directory
        _write_tensors(unfinished, staged, ranks, fsync)
        ranks.barrier_beside()
        return final
    for abandoned in final.parent.glob(".*-*"):
        # by a process that was killed in the middle of one
        shutil.rmtree(abandoned, ignore_errors=True)
    with atomic_replace(final, unfinished, "run.dir"):
        (unfinished / STATE).mkdir(parents=True)
        ranks.barrier_beside()
        _write_tensors(unfinished, staged, ranks, fsync)
        _write_rest(unfinished, staged)
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
    ranks.barrier_beside()
    return final


def _write_tensors(directory: Path, staged: StagedCheckpoint, ranks: Ranks, fsync: bool) -> None:
    """Write what this rank has of all tensors."""
    tensors = staged.tensors
    write_weights(directory, staged.model, tensors.weights, ranks)
    if staged.reference is not None:
        write_weights(directory / STATE / REFERENCE, staged.reference, tensors.reference, ranks)
    write_training(directory / STATE / TENSORS, tensors.training, ranks, fsync)


def _write_rest(directory: Path, staged: StagedCheckpoint) -> None:
    """Write all but the tensors that ranks have parts of; state.json comes last."""
    copy_small_files(staged.tokenizer_from, directory)
    if staged.critic is not None:
        torch.save(staged.critic, directory / STATE / CRITIC)
    if staged.explored is not None:
        _save_explored(directory / STATE / EXPLORED, staged.explored)
    write_contents(directory)
    (directory / STATE / "state.json").write_bytes(msgspec.json.encode(staged.state))


def _copy_exploration(exploration: Exploration) -> _Explored:
    return _Explored(
        np.fromiter(exploration.states, np.uint64),
        np.fromiter(exploration.pairs, np.uint64),
        np.array(list(exploration.divisors.values())),
    )


def _save_explored(file: Path, explored: _Explored) -> None:
    np.savez(file, states=explored.states, pairs=explored.pairs, divisors=explored.divisors)


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


def _to_disk(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_policy(directory: Path, model: PreTrainedModel, tokenizer_from: Path) -> None:
    """Write a model that is no rank's alone, with the tokenizer and other files it came with."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    copy_small_files(tokenizer_from, directory)


def copy_small_files(source: Path, directory: Path) -> None:
    """Copy the files of a model's directory, but for weights and those that are there already."""
    for file in source.iterdir():
        target = directory / file.name
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not target.exists():
            shutil.copy(file, target)


def load(
    directory: Path, optimizer: torch.optim.Optimizer, ranks: Ranks | None = None
) -> TrainingState:
    """Restore an optimizer, built with the settings of now, and return the rest.

    The weights: `load_policy(directory)`, from which `read_adapters(directory)` come out again.
    With several ranks, all must ask.
    """
    read_optimizer(directory / STATE / TENSORS, optimizer, ranks or Ranks())
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
    return checkpoint_tensors.read_adapters(directory / STATE / TENSORS)


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
