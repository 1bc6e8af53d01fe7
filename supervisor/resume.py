"""Resume a run, and decide which of its settings may change.

What a run has written (weights, optimizer, log, curve) belongs to one model, one set of tasks and
one way to group episodes. A setting that would make something else of it is refused by name, before
anything is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from config import Config, ConfigError
from config.model import NAMED_MODELS
from config.options import environment_fields, flatten
from config.resolve import Resolution, full_name, locate_environment, resolve_recorded
from config.sets import EVALUATION_SETS
from config.template_arguments import TEMPLATE_ARGUMENTS
from learner.checkpoint_damage import archive_damaged, newest_undamaged
from protocol.messages import SCHEMA_VERSION
from protocol.model_json import read_model_json, text_config

log = logging.getLogger(__name__)

FIXED_REASONS = {
    "run.seed": "chooses the tasks of the groups that are under way",
    "env.name": "is what its curve is of",
    "model.name": "is what its weights are of",
    "model.system_prompt": "is in all its prompts",
    "model.past_thoughts": "says what is in its prompts",
    "model.tool_format": "says what is in its prompts",
    "sampling.temperature": "is what the log-probs of its episodes are at",
    "learner.group_size": "is the size of the groups that are under way",
    "learner.lora_rank": "is what its adapters have",
    "learner.lora_alpha": "is what its adapters are scaled by",
}
"""Setting -> why a run goes on with its own."""

PATH_SETTINGS = (
    "model.name",
    "env.settings.data",
    "env.settings.questions",
    "env.settings.corpus",
)
"""Settings that name files and directories, which may have been moved.

Where the recorded one is no more, another one is taken.
"""

ARCHITECTURE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
)
"""Keys of config.json in which two directories of one model agree."""


def resolve_resumed(run_dir: Path, overrides: dict[str, str]) -> tuple[Resolution, str]:
    """The settings of the run in `run_dir` with overrides, and a line that lists what these change.

    The line is empty where nothing changes: the command that began a run goes on with it, too.

    Raises ConfigError for what is no run of this version, and for an override that the run cannot
    go on with.
    """
    if not (run_dir / "config.toml").is_file():
        raise ConfigError(f"--resume: {run_dir} is no run directory (it has no config.toml)")
    _check_version(run_dir)
    full_names = {full_name(name): text for name, text in overrides.items()}
    new_dir = full_names.get("run.dir")
    if new_dir is not None and Path(new_dir).resolve() != run_dir.resolve():
        raise ConfigError(f"run.dir: --resume goes on in {run_dir}; leave it out")
    record = run_dir / "config.toml"
    here = {"run.dir": str(run_dir)}
    environment = locate_environment(record, full_names.get("env.name", ""))
    environment_fields(environment)  # an error of its code says nothing of the version
    try:
        recorded = resolve_recorded(record, here, environment).config
    except ConfigError as error:
        raise ConfigError(
            f"--resume: another version of this project wrote {run_dir}, or a person did: {error}"
        ) from None
    resolution = resolve_recorded(record, overrides | here)
    changes = changed_settings(recorded, resolution.config)
    for name, (before, after) in changes.items():
        check_change(run_dir, name, before, after, recorded)
    return resolution, ", ".join(
        f"{name} {_text(before)} -> {_text(after)}" for name, (before, after) in changes.items()
    )


def changed_settings(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ: name -> (value before, value after).

    Of an evaluation set or an argument of the template that is new, the values before are empty.
    """
    values_before = flatten(msgspec.to_builtins(before))
    values_after = flatten(msgspec.to_builtins(after))
    changed = {
        name: (value, values_after[name])
        for name, value in values_before.items()
        if name in values_after and value != values_after[name]
    }
    added = {
        name: ("", value)
        for name, value in values_after.items()
        if name.startswith((f"{EVALUATION_SETS}.", f"{TEMPLATE_ARGUMENTS}."))
        and name not in values_before
    }
    return changed | added


def check_change(run_dir: Path, name: str, before: Any, after: Any, recorded: Config) -> None:
    """Raise ConfigError for a change of a setting with which the run cannot go on."""
    reason = FIXED_REASONS.get(name, "")
    if name == "learner.lora_alpha" and not recorded.learner.lora_rank:
        reason = ""
    if name.startswith("model.tiny.") and recorded.model.name == "tiny":
        reason = FIXED_REASONS["model.name"]
    if name.startswith(f"{TEMPLATE_ARGUMENTS}."):
        reason = "is what its prompts are made with"
    if name.startswith("env.settings.") and name != "env.settings.url":
        reason = "belongs to the tasks that its curve is of"
    if name == "learner.kl_coef" and not before:
        reason = "left it without a reference policy to hold to"
    if name in PATH_SETTINGS and _is_the_same_place(before, after):
        reason = ""
    if reason:
        raise ConfigError(
            f"{name}: the run in {run_dir} has {_text(before)}, which {reason}; leave it, or "
            f"begin a new run from its weights: --model {_newest_weights(run_dir)}"
        )


def check_model_of(run_dir: Path, model: Path | None) -> None:
    """Raise ConfigError, naming model.name, when `model` does not fit the weights of the run.

    They must have the same tokens and the same architecture.
    """
    checkpoint = newest_undamaged(run_dir)
    model = model or run_dir / "policy"
    if checkpoint is None or not model.is_dir():
        return
    if _read(checkpoint / "tokenizer.json") != _read(model / "tokenizer.json"):
        raise ConfigError(
            f"model.name: {model} has another vocabulary than {checkpoint}; --resume needs the "
            "model that the run began with"
        )
    recorded_config = _read_config(checkpoint)
    model_config = _read_config(model)
    for key in ARCHITECTURE_KEYS:
        if recorded_config.get(key) != model_config.get(key):
            raise ConfigError(
                f"model.name: {model} has {key} {model_config.get(key)}, and {checkpoint} has "
                f"{recorded_config.get(key)}; --resume needs the model that the run began with"
            )


def _read_config(model: Path) -> Mapping[str, Any]:
    file = model / "config.json"
    if not file.is_file():
        return {}
    try:
        return text_config(read_model_json(file))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def set_damaged_checkpoints_aside(run_dir: Path) -> None:
    """Set checkpoints aside that cannot be loaded, and log which.

    Raises ConfigError if a run has no other ones.
    """
    try:
        damaged = archive_damaged(run_dir)
    except ValueError as error:
        raise ConfigError(f"--resume: {error}; put that back, or begin a new run") from None
    for name, words in damaged.items():
        log.warning("checkpoint %s of %s is left aside: %s", name, run_dir, words)


def _check_version(run_dir: Path) -> None:
    """Raise ConfigError for a run whose records are in another form than ours."""
    try:
        schema = json.loads((run_dir / "job.json").read_bytes()).get("schema", 0)
    except (OSError, ValueError, AttributeError):
        return  # a run that was killed before it began: there are no records
    if schema != SCHEMA_VERSION:
        raise ConfigError(
            f"--resume: another version of this project wrote {run_dir} (schema {schema}, and "
            f"this one has {SCHEMA_VERSION}); go on with that one, or begin a new run from its "
            f"weights: --model {_newest_weights(run_dir)}"
        )


def _newest_weights(run_dir: Path) -> Path:
    return newest_undamaged(run_dir) or run_dir / "policy"


def _is_the_same_place(before: str, after: str) -> bool:
    """Tell whether two settings name one place, or the first one names a place that is gone."""
    if not before or not after or before in NAMED_MODELS or after in NAMED_MODELS:
        return False
    return not Path(before).exists() or Path(before).resolve() == Path(after).resolve()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "(empty)"
    return str(value) or "(empty)"


def _read(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    return path.read_bytes()
