"""Settings from the defaults, a TOML file and the command line, each checked; and back to TOML."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from config import Config, ConfigError, EnvSection
from config.consistency import check_consistency
from config.defaults import defaults_for, fixed_thresholds
from config.options import (
    SHORT_NAMES,
    all_settings,
    default_of,
    describe,
    description,
    flatten,
    kind_of,
    nest,
    tagged_sections,
    this_command,
)

DATA_VARIABLES = {"alfworld.data": "ALFWORLD_DATA", "webshop.data": "WEBSHOP_DATA"}
"""Setting of an environment's data -> the environment variable that stands in for it."""


def resolve(
    file: Path | None = None, overrides: dict[str, str] | None = None, serial: bool = False
) -> Config:
    """The defaults, then the TOML file, then the overrides ({full or short name: text of the
    value}).

    The defaults are those that depend on other settings, or on whether the run is `serial`
    (config/defaults.py), then those of the sections.

    Raises ConfigError for anything unknown, ill-typed, out of bounds or inconsistent.
    """
    known = all_settings()
    in_file = _read_settings(file, known) if file else {}
    options = {}
    for name, text in (overrides or {}).items():
        full = full_name(name)
        _check_known(full, known, "on the command line")
        options[full] = _parse_value(full, known[full], text)
    in_file = _without_other_types(in_file, options)
    given = in_file | fixed_thresholds(in_file)
    given |= options | fixed_thresholds(options)
    given = _with_types(given)
    config = from_dict(nest({**defaults_for(given, serial), **_data_directory(given), **given}))
    check_consistency(config)
    return config


def _without_other_types(in_file: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings, but for those of a type that the command line replaces by another."""
    kept = dict(in_file)
    for section, types in tagged_sections().items():
        chosen = options.get(f"{section}.type")
        for full in in_file:
            parent, _, name = full.rpartition(".")
            if parent == section and chosen in types and name not in types[chosen]:
                kept.pop(full, None)
    return kept


def _with_types(given: dict[str, Any]) -> dict[str, Any]:
    """Settings with the type of each tagged section.

    Raises ConfigError for a setting that another type has.
    """
    typed = dict(given)
    for section, types in tagged_sections().items():
        chosen = given.get(f"{section}.type", default_of(all_settings()[f"{section}.type"]))
        typed[f"{section}.type"] = chosen
        for full in given:
            parent, _, name = full.rpartition(".")
            if parent != section or name == "type" or name in types.get(chosen, (name,)):
                continue
            owners = " or ".join(kind for kind, names in types.items() if name in names)
            raise ConfigError(
                f"{full}: it is a setting of {section} {owners}, and {section} is {chosen}; choose "
                "such, or leave it out"
            )
    return typed


def _read_settings(file: Path, known: dict[str, msgspec.inspect.Field]) -> dict[str, Any]:
    """{full name: value} of the settings in a TOML file, which are all known."""
    tree = _read_toml(file)
    for section in tree:
        if section not in Config.__struct_fields__:
            raise ConfigError(
                f"there is no section [{section}] (in {file}); there are "
                f"{', '.join(Config.__struct_fields__)}"
            )
    values = {full_name(name): value for name, value in flatten(tree).items()}
    for name, value in list(values.items()):
        if value == {} and any(full.startswith(f"{name}.") for full in known):
            del values[name]  # a section without settings
        else:
            _check_known(name, known, f"in {file}")
    return values


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
    name = SHORT_NAMES.get(name, name)
    if name in tagged_sections():
        return f"{name}.type"
    return name


def from_dict(tree: dict) -> Config:
    """Make a Config of nested dictionaries.

    Raises ConfigError naming the setting that does not fit.
    """
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition("[")[0]
        raise ConfigError(f"{name}: {message[:1].lower()}{message[1:]}. {describe(name)}") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, every setting with its description above it."""
    lines: list[str] = []
    values = flatten(msgspec.to_builtins(config))
    section = ""
    for full, field in all_settings().items():
        if full not in values:
            continue
        if full.rpartition(".")[0] != section:
            section = full.rpartition(".")[0]
            lines += ["", f"[{section}]"]
        lines += [f"# {description(field)}", f"{field.name} = {_toml(values[full])}"]
    return "\n".join(lines[1:]) + "\n"


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
    near = [full for full in known if full.split(".")[-1] == name.split(".")[-1]][:1]
    if not near:
        near = difflib.get_close_matches(name, [*known, *SHORT_NAMES], n=1, cutoff=0.5)
    hint = f"; `{this_command()} --help all` lists all settings"
    if near:
        hint = f"; did you mean {near[0]}?"
    raise ConfigError(f"there is no setting {name} ({where}){hint}")


_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_EXPECTED = {"BoolType": "true or false", "IntType": "a whole number", "FloatType": "a number"}


def _parse_value(name: str, field: msgspec.inspect.Field, text: str) -> Any:
    """The text of a command-line value as the setting's type."""
    kind = kind_of(field)
    if isinstance(kind, msgspec.inspect.ListType):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        if isinstance(kind, msgspec.inspect.BoolType):
            return _SWITCH[text.lower()]
        if isinstance(kind, msgspec.inspect.IntType):
            return int(text)
        if isinstance(kind, msgspec.inspect.FloatType):
            return float(text)
    except (ValueError, KeyError):
        expected = _EXPECTED[type(kind).__name__]
        raise ConfigError(f"{name}: {text!r} is not {expected}. {describe(name)}") from None
    return text


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
