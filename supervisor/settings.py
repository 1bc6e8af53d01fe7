"""Settings from the defaults, a TOML file and the command line, each checked; and back to TOML."""

from __future__ import annotations

import difflib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from config import Config, ConfigError, EnvSection
from supervisor.defaults import defaults_for, fixed_thresholds
from supervisor.ignored import check_used
from supervisor.models import is_hub_id
from supervisor.options import SHORT_NAMES, all_settings, describe, description, kind_of

DATA_VARIABLES = {"alfworld.data": "ALFWORLD_DATA", "webshop.data": "WEBSHOP_DATA"}
"""Settings of an environment's data -> the environment variables that stand in where they are not
given."""


def resolve(
    file: Path | None = None, overrides: dict[str, str] | None = None, serial: bool = False
) -> Config:
    """The defaults, then the TOML file, then the overrides ({full or short name: text of the
    value}).

    The defaults are those that depend on other settings, or on whether the run is `serial`
    (supervisor/defaults.py), then those of config.py.

    Raises ConfigError for anything unknown, ill-typed, out of bounds or inconsistent.
    """
    tree: dict[str, dict[str, Any]] = {}
    if file is not None:
        tree = _read_toml(file)
    known = all_settings()
    for section, values in tree.items():
        if section not in Config.__struct_fields__:
            raise ConfigError(
                f"there is no section [{section}] (in {file}); there are "
                f"{', '.join(Config.__struct_fields__)}"
            )
        for name in values:
            _check_known(f"{section}.{name}", known, f"in {file}")
    given = {
        f"{section}.{name}": value
        for section, values in tree.items()
        for name, value in values.items()
    }
    given |= fixed_thresholds(given)
    said = {}
    for name, text in (overrides or {}).items():
        full = full_name(name)
        _check_known(full, known, "on the command line")
        said[full] = _value(full, known[full], text)
    given |= said | fixed_thresholds(said)
    tree = {}
    for full, value in {**defaults_for(given, serial), **_data_directory(given), **given}.items():
        section, key = full.split(".")
        tree.setdefault(section, {})[key] = value
    config = from_dict(tree)
    check_consistency(config)
    return config


def _data_directory(given: Mapping[str, Any]) -> dict[str, str]:
    """The setting of the environment's data, from the variable that its benchmark documents; a
    run's record then says what it played."""
    setting = f"{given.get('env.name', EnvSection().name)}.data"
    variable = DATA_VARIABLES.get(setting, "")
    directory = os.environ.get(variable, "")
    return {setting: directory} if directory else {}


def full_name(name: str) -> str:
    """The setting that an option of the command line names, in full or by its short name."""
    name = name.replace("-", "_")
    return SHORT_NAMES.get(name, name)


def from_dict(tree: dict) -> Config:
    """A Config from nested dictionaries.

    Raises ConfigError naming the setting that does not fit.
    """
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition("[")[0]
        raise ConfigError(f"{name}: {message[:1].lower()}{message[1:]}. {describe(name)}") from None


def check_consistency(config: Config) -> None:
    """Raises ConfigError when two settings cannot hold together, or a number is infinite."""
    for section, settings in msgspec.to_builtins(config).items():
        for name, value in settings.items():
            if value == math.inf:
                raise ConfigError(
                    f"{section}.{name}: a number must be finite; for no limit, give one that is "
                    "never reached"
                )
    if config.sampling.max_tokens >= config.engine.max_model_len:
        raise ConfigError(
            f"sampling.max_tokens ({config.sampling.max_tokens}) must be smaller than "
            f"engine.max_model_len ({config.engine.max_model_len})"
        )
    for url in config.engine.urls:
        if not _is_url(url):
            raise ConfigError(
                f"engine.urls: {url!r} is no address of a server; write http://HOST:PORT"
            )
    if config.engine.devices and len(config.engine.devices) != config.engine.count:
        raise ConfigError(
            f"engine.devices: {len(config.engine.devices)} devices for {config.engine.count} "
            "engines (engine.count)"
        )
    if config.learner.devices and len(config.learner.devices) != config.learner.ranks:
        raise ConfigError(
            f"learner.devices: {len(config.learner.devices)} devices for {config.learner.ranks} "
            "ranks (learner.ranks)"
        )
    check_used(config.learner)
    if config.learner.correction == "vtrace" and config.learner.algorithm != "gae":
        raise ConfigError(
            "learner.correction: vtrace corrects values, and learner.algorithm "
            f"{config.learner.algorithm} has none; set it to gae"
        )
    if config.learner.publish_lag > config.learner.max_staleness:
        raise ConfigError(
            f"learner.publish_lag: weights that come {config.learner.publish_lag} updates late "
            "make data older than learner.max_staleness "
            f"({config.learner.max_staleness}) allows; raise that, or lower this"
        )
    if config.dashboard.host not in ("127.0.0.1", "localhost") and not config.dashboard.token:
        raise ConfigError(
            f"dashboard.token: at {config.dashboard.host} others can ask for the dashboard; set "
            "a token, or leave dashboard.host"
        )
    if config.control.min_thinking > config.control.max_thinking:
        raise ConfigError(
            f"control.min_thinking ({config.control.min_thinking}) must not exceed "
            f"control.max_thinking ({config.control.max_thinking})"
        )
    if (
        config.control.mode == "budget"
        and config.control.max_thinking >= config.sampling.max_tokens
    ):
        raise ConfigError(
            "control.max_thinking: control.mode budget would cut thinking at "
            f"{config.control.max_thinking} tokens, which a response of "
            f"{config.sampling.max_tokens} (sampling.max_tokens) never comes to; give fewer, as "
            "many as most thoughts have"
        )
    if config.control.score == "code" and config.control.turn_mean == "geometric":
        raise ConfigError(
            "control.turn_mean: the score of control.score code is below 0 where the policy is "
            "uncertain, and has no geometric mean; "
            "set it to arithmetic"
        )
    if (
        config.model.name not in ("tiny", "smollm2")
        and not Path(config.model.name).is_dir()
        and not is_hub_id(config.model.name)
    ):
        raise ConfigError(
            f"model.name: {config.model.name!r} is neither 'tiny' nor 'smollm2', a directory, or "
            "a name of the hub; give the path of a "
            "Hugging Face model directory"
        )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        )  # asked for, it is checked, too
    except ValueError:
        return False


def to_toml(config: Config) -> str:
    """The configuration as TOML, every setting with its description above it."""
    lines = []
    for section in msgspec.inspect.type_info(Config).fields:
        lines.append(f"[{section.name}]")
        for field in section.type.fields:
            value = getattr(getattr(config, section.name), field.name)
            lines += [f"# {description(field)}", f"{field.name} = {_toml(value)}"]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value as TOML: JSON but for characters beyond 16 bits, and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(file: Path) -> dict:
    try:
        tree = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--config: there is no file {file}") from None
    except OSError as error:
        raise ConfigError(f"--config: {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {file} is not valid TOML: {error}") from None
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{section!r} in {file} stands outside any section; write it as [section] and "
                "name = value"
            )
    return tree


def _check_known(name: str, known: dict, where: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, [*known, *SHORT_NAMES], n=1, cutoff=0.5)
    if not near:
        near = [full for full in known if full.split(".")[1] == name.split(".")[-1]][:1]
    hint = f"; did you mean {near[0]}?" if near else "; `python run.py --help` lists all settings"
    raise ConfigError(f"there is no setting {name} ({where}){hint}")


def _value(name: str, field: msgspec.inspect.Field, text: str) -> Any:
    """The text of a command-line value as the setting's type."""
    kind = kind_of(field)
    if isinstance(kind, msgspec.inspect.ListType):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(kind, msgspec.inspect.StrType | msgspec.inspect.LiteralType):
        return text
    try:
        if isinstance(kind, msgspec.inspect.BoolType):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
                text.lower()
            ]
        return int(text) if isinstance(kind, msgspec.inspect.IntType) else float(text)
    except (ValueError, KeyError):
        expected = {
            "BoolType": "true or false",
            "IntType": "a whole number",
            "FloatType": "a number",
        }[type(kind).__name__]
        raise ConfigError(f"{name}: {text!r} is not {expected}. {describe(name)}") from None


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value` as {name: value}. Raises ConfigError for anything else."""
    overrides = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise ConfigError(f"{argument!r} belongs to no setting; write --section.name VALUE")
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"--{name} has no value")
        overrides[name] = value
    return overrides
