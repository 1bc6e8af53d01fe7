"""Check, before anything starts, that this machine has what a run will need.

That is room for weights and checkpoints, open files, and the cache. Decisions take numbers; only
`describe_machine` and the functions that name a place look at the machine.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import tempfile
from pathlib import Path

from config import Config, ConfigError, LearnerSection, TinySection
from protocol.machine import available_bytes, available_cores
from supervisor.cluster.model_shape import tiny_shape

VERSIONS_ON_DISK = 4
"""Versions of the weights that take room at once.

They are those that are kept, the one that engines still run, and the one that is being written.
"""

MIN_CHECKPOINTS = 2
"""Checkpoints of a run that keeps one, which is removed only after the next one is written."""

MOMENTS = 2
"""Numbers that the optimizer keeps of each weight that it trains."""

OTHER_OPEN_FILES = 256
"""Open files of a process that are no connections of turns or actors.

They are logs, libraries, and sockets of its own.
"""

MEMORY = Path("/dev/shm")
"""Directory whose files are in memory."""

DTYPE_BYTES = {"bfloat16": 2, "float32": 4, "auto": 4}


def policy_parameters(tiny: TinySection, directory: Path | None) -> int:
    """Count the policy's weights in its safetensors files; for the tiny one, by its settings."""
    if directory is not None:
        return sum(_tensor_elements(file) for file in directory.glob("*.safetensors"))
    return tiny_shape(tiny).weights()


def _tensor_elements(file: Path) -> int:
    """Count the elements of all tensors in a safetensors file, by its header.

    It is 0 where the header cannot be read, which another check reports.
    """
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except (OSError, ValueError, MemoryError, OverflowError):
        return 0
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def weights_bytes(config: Config, parameters: int) -> int:
    """Bytes that published weights take at once; none if they are sent over NCCL."""
    if config.engine.weights == "nccl":
        return 0
    return VERSIONS_ON_DISK * parameters * DTYPE_BYTES[config.engine.dtype]


def free_bytes(directory: Path) -> float:
    """Bytes that may be written in a directory, or in the nearest one above it that exists.

    They are infinite if its disk does not say.
    """
    place = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    usage = shutil.disk_usage(place)
    if usage.total == 0:
        return math.inf
    return usage.free


def choose_weights_parent(configured: str, needed_bytes: int, run_dir: Path) -> Path:
    """Choose the directory for published weights.

    It is the configured one, or the first with room of memory, temporary files and the run's own.
    Raises ConfigError naming run.weights_dir.
    """
    candidates = [MEMORY, *_temporary_directories(), run_dir.absolute().parent]
    if configured:
        candidates = [_make_weights_parent(Path(configured).absolute())]
    too_small = []
    for place in candidates:
        if configured or os.access(place, os.W_OK):
            free = free_bytes(place)
            if free >= needed_bytes:
                return place
            too_small.append(f"{place} has {_megabytes(free)}")
    if not too_small:  # none of them is there yet, or may be written to
        return _make_weights_parent(run_dir.absolute().parent)
    raise ConfigError(
        f"run.weights_dir: {VERSIONS_ON_DISK} versions of the weights need "
        f"{_megabytes(needed_bytes)}, and {', '.join(too_small)}; "
        "give a directory with more room"
    )


def explain_weights_place(configured: str, directory: Path) -> str:
    """Say why published weights are not in memory; "" where they are, or were put elsewhere."""
    if configured or MEMORY in directory.parents:
        return ""
    free = _megabytes(free_bytes(MEMORY))
    return (
        f"published weights: {directory}, since {MEMORY} has {free} free, too little for "
        f"{VERSIONS_ON_DISK} versions of them (a container has --shm-size)"
    )


def _make_weights_parent(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.weights_dir: {parent} cannot be made: {error.strerror}") from None
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"run.weights_dir: {parent} cannot be written to")
    return parent


def _temporary_directories() -> list[Path]:
    try:
        return [Path(tempfile.gettempdir())]
    except FileNotFoundError:  # none that can be written to
        return []


def copies_in_checkpoint(learner: LearnerSection) -> int:
    """Size of a checkpoint, in copies of the weights in float32.

    They are the policy, the reference, and what the optimizer keeps (of adapters, little).
    """
    copies = 1
    if not learner.lora_rank:
        copies += MOMENTS
    if learner.kl_coef:
        copies += 1
    return copies


def checkpoints_on_disk(config: Config) -> int:
    """How many checkpoints there are at once, at most.

    Where nothing bounds them, it is how many a run needs to get anywhere.
    """
    learner = config.learner
    updates = config.run.max_updates
    bounds = []
    if updates:  # the first one, with learner.rollback, and the last one
        bounds.append(updates // learner.checkpoint_every + 2)
    if learner.keep_checkpoints and not learner.keep_every:
        bounds.append(learner.keep_checkpoints + 1)
    return max(MIN_CHECKPOINTS, min(bounds, default=0))


def check_checkpoints(config: Config, run_dir: Path, parameters: int, written: int = 0) -> None:
    """Raise ConfigError naming run.dir where its disk does not hold the run's checkpoints.

    `written` of them are there already.
    """
    count = max(1, checkpoints_on_disk(config) - written)
    needed = count * copies_in_checkpoint(config.learner) * 4 * parameters
    free = free_bytes(run_dir)
    if free < needed:
        raise ConfigError(
            f"run.dir: {count} checkpoints need about {_megabytes(needed)}, and {run_dir} has "
            f"{_megabytes(free)} left; give a directory with more room, or keep fewer "
            "(learner.keep_checkpoints)"
        )


def check_open_files(config: Config, limit: int | None = None) -> None:
    """Raise ConfigError naming actor.count where turns need more open files than are allowed."""
    if limit is None:
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.actor.count * (1 + config.actor.episodes_per_actor) + OTHER_OPEN_FILES
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise ConfigError(
            f"actor.count: {config.actor.count} actors of {config.actor.episodes_per_actor} "
            f"episodes need {needed:,} open files, and the system allows {limit:,} "
            "(ulimit -Hn); raise that, or have fewer actors"
        )


def check_cache(config: Config) -> None:
    """Raise ConfigError naming run.cache_dir where what this run makes once cannot be kept."""
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
    # With policies there, the learner sees later whether this run's is among them.
    if not any(directory.glob("policy-*")):
        raise ConfigError(
            f"run.cache_dir: {directory} cannot be written to; give another directory"
        )


def check_machine(config: Config, model: Path | None, run_dir: Path, resume: bool) -> int:
    """Raise ConfigError for what this machine does not have.

    Returns the bytes that weights need in their directory.
    """
    check_open_files(config)
    if config.warm_start.is_wanted and not resume:
        check_cache(config)
    parameters = policy_parameters(config.model.tiny, model)
    if not config.cluster.learner_launch:
        written = 0
        if resume:
            written = len(list(run_dir.glob("checkpoints/*")))
        check_checkpoints(config, run_dir, parameters, written)
    return weights_bytes(config, parameters)


def describe_machine(config: Config) -> str:
    """Describe in a sentence what this machine gives a run."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    run_dir = Path(config.run.dir or "runs")
    weights_parent = Path(config.run.weights_dir or MEMORY)
    return (
        f"This machine: {available_cores()} cores, {_megabytes(available_bytes())} of memory, "
        f"{files:,} open files; free: "
        f"{_megabytes(free_bytes(run_dir))} in {run_dir}, "
        f"{_megabytes(free_bytes(weights_parent))} in {weights_parent}."
    )


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"
