"""What a run will need of this machine, looked at before anything starts: room for weights and
checkpoints, open files, the cache.

Decisions take numbers; only `describe_machine` and the functions that name a place look at the
machine.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import tempfile
from pathlib import Path

from config import Config, ConfigError, LearnerSection, ModelSection
from protocol.machine import available_bytes, cores

VERSIONS_ON_DISK = 4
"""Of the weights: those that are kept, the one that engines still run, and the one that is being
written."""

CHECKPOINTS_AT_LEAST = 2
"""Of a run that keeps one: it is removed only after the next one is written."""

MOMENTS = 2
"""Numbers that the optimizer keeps of each weight that it trains."""

FILES_BESIDE_TURNS = 256
"""Files of a process that are no connections of turns or actors: logs, libraries, sockets of its
own."""

WIDTH_BYTES = {"bfloat16": 2, "float32": 4, "auto": 4}
HEAD_SIZE = 32


def policy_parameters(model: ModelSection, directory: Path | None) -> int:
    """How many weights the policy has: counted from its safetensors files, or for the tiny one from
    its settings."""
    if directory is not None:
        return sum(_tensor_elements(file) for file in directory.glob("*.safetensors"))
    hidden = model.hidden_size
    attention = model.heads * HEAD_SIZE
    layer = 4 * hidden * attention + 3 * hidden * 3 * hidden + 2 * hidden + 2 * HEAD_SIZE
    return model.vocabulary * hidden + model.layers * layer + hidden


def _tensor_elements(file: Path) -> int:
    """Elements of all tensors in a safetensors file, by its header; 0 where that cannot be read,
    which is said elsewhere."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except (OSError, ValueError, MemoryError, OverflowError):
        return 0
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for size in tensor["shape"]:
                elements *= size
            total += elements
    return total


def weights_bytes(config: Config, parameters: int) -> int:
    """Room that published weights take at once; none if they are sent over NCCL."""
    if config.engine.weights == "nccl":
        return 0
    return VERSIONS_ON_DISK * parameters * WIDTH_BYTES[config.engine.dtype]


def free_bytes(directory: Path) -> float:
    """What may be written in a directory that exists, or will exist in the nearest one above it
    that does; infinite if its disk does not say."""
    place = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    usage = shutil.disk_usage(place)
    return usage.free if usage.total else math.inf


def choose_weights_parent(configured: str, needed_bytes: int, run_dir: Path) -> Path:
    """Where published weights will be: the configured directory, or the first that has room of
    memory, temporary files and the run's own.

    Raises ConfigError naming run.weights_dir.
    """
    candidates = [Path("/dev/shm"), *_temporary(), run_dir.absolute().parent]
    if configured:
        candidates = [_made(Path(configured).absolute())]
    looked_at = []
    for place in candidates:
        if configured or os.access(place, os.W_OK):
            free = free_bytes(place)
            if free >= needed_bytes:
                return place
            looked_at.append(f"{place} has {_megabytes(free)}")
    if not looked_at:  # none of them is there yet, or may be written to
        return _made(run_dir.absolute().parent)
    raise ConfigError(
        f"run.weights_dir: {VERSIONS_ON_DISK} versions of the weights need "
        f"{_megabytes(needed_bytes)}, and {', '.join(looked_at)}; "
        "give a directory with more room"
    )


def _made(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.weights_dir: {parent} cannot be made: {error.strerror}") from None
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"run.weights_dir: {parent} cannot be written to")
    return parent


def _temporary() -> list[Path]:
    try:
        return [Path(tempfile.gettempdir())]
    except FileNotFoundError:  # none that can be written to
        return []


def copies_in_checkpoint(learner: LearnerSection) -> int:
    """How large a checkpoint is, in copies of the weights in float32: the policy, the reference,
    and what the optimizer keeps (of adapters that is little)."""
    copies = 1
    if not learner.lora_rank:
        copies += MOMENTS
    if learner.kl:
        copies += 1
    return copies


def checkpoints_on_disk(config: Config) -> int:
    """How many there are at once, at most; where nothing bounds them, how many it takes to get
    anywhere."""
    learner = config.learner
    updates = config.run.updates
    bounds = []
    if updates:  # the first one, with learner.rollback, and the last one
        bounds.append(updates // learner.checkpoint_every + 2)
    if learner.keep_checkpoints and not learner.keep_every:
        bounds.append(learner.keep_checkpoints + 1)
    return max(CHECKPOINTS_AT_LEAST, min(bounds, default=0))


def check_checkpoints(config: Config, run_dir: Path, parameters: int, there: int = 0) -> None:
    """Raises ConfigError naming run.dir where its disk does not hold the checkpoints that are there
    at once, `there` of them already."""
    count = max(1, checkpoints_on_disk(config) - there)
    needed = count * copies_in_checkpoint(config.learner) * 4 * parameters
    free = free_bytes(run_dir)
    if free < needed:
        raise ConfigError(
            f"run.dir: {count} checkpoints need about {_megabytes(needed)}, and {run_dir} has "
            f"{_megabytes(free)} left; "
            "give a directory with more room, or keep fewer (learner.keep_checkpoints)"
        )


def check_open_files(config: Config, most: int | None = None) -> None:
    """Raises ConfigError naming actor.count where a process may not have as many open files as
    turns that are under way at once."""
    if most is None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.actor.count * (1 + config.actor.episodes) + FILES_BESIDE_TURNS
    if most != resource.RLIM_INFINITY and needed > most:
        raise ConfigError(
            f"actor.count: {config.actor.count} actors of {config.actor.episodes} episodes need "
            f"{needed:,} open files, and the system "
            f"allows {most:,} (ulimit -Hn); raise that, or have fewer actors"
        )


def check_cache(config: Config) -> None:
    """Raises ConfigError naming run.cache_dir where what this run makes once cannot be kept."""
    try:
        directory = config.cache_dir()
    except RuntimeError:  # no HOME, and nobody in /etc/passwd
        raise ConfigError(
            "run.cache_dir: there is no home directory (HOME) to keep models in; give a directory"
        ) from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.cache_dir: {directory} cannot be made: {error.strerror}; give another directory"
        ) from None
    if os.access(directory, os.W_OK | os.X_OK):
        return
    if not any(
        directory.glob("policy-*")
    ):  # else the learner sees whether this run's is among them, once there is a policy to tell by
        raise ConfigError(
            f"run.cache_dir: {directory} cannot be written to; give another directory"
        )


def check_machine(config: Config, model: Path | None, run_dir: Path, resume: bool) -> int:
    """Raises ConfigError for what this machine does not have; returns the bytes that weights need
    in their directory."""
    check_open_files(config)
    if config.warm_start.episodes and not resume:
        check_cache(config)
    parameters = policy_parameters(config.model, model)
    if not config.learner.launch:
        there = len(list(run_dir.glob("checkpoints/*"))) if resume else 0
        check_checkpoints(config, run_dir, parameters, there)
    return weights_bytes(config, parameters)


def describe_machine(config: Config) -> str:
    """What this machine gives a run, in a sentence."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    run_dir = Path(config.run.dir or "runs")
    memory = Path(config.run.weights_dir or "/dev/shm")
    return (
        f"This machine: {cores()} cores, {_megabytes(available_bytes())} of memory, {files:,} "
        "open files; free: "
        f"{_megabytes(free_bytes(run_dir))} in {run_dir}, {_megabytes(free_bytes(memory))} in "
        f"{memory}."
    )


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"
