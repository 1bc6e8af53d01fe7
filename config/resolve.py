"""Settings from the defaults, a TOML file and the command line, each checked; and back to TOML."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from config import Config, ConfigError, EnvSection
from config.consistency import check_consistency
from config.defaults import defaults_for, fixed_thresholds
from config.options import (
    ENVIRONMENT_SETTINGS,
    SHORT_NAMES,
    all_settings,
    default_of,
    describe,
    description,
    environment_fields,
    flatten,
    flatten_config,
    kind_of,
    nest,
    tagged_sections,
)
from config.recipes import RECIPE_OPTION, read_recipes
from config.refusals import (
    describe_misfit,
    describe_unknown_setting,
    find_misfits,
    guess,
    value_at,
)
from envs.registry import absolute_name, settings_of_environment

DATA_VARIABLES = {"alfworld": "ALFWORLD_DATA", "webshop": "WEBSHOP_DATA"}
"""Environment -> the variable that stands in for its setting `data`."""


def resolve(
    file: Path | None = None, overrides: dict[str, str] | None = None, serial: bool = False
) -> Config:
    """Resolve the defaults, then recipes, then the TOML file, then the overrides.

    Overrides are {full or short name: text of the value}; `recipe` names recipes. The defaults are
    those that depend on other settings, or on whether the run is `serial` (config/defaults.py),
    then those of the sections.

    Raises ConfigError for anything unknown, ill-typed, out of bounds or inconsistent.
    """
    texts = {full_name(name): text for name, text in (overrides or {}).items()}
    tree = _read_trees(texts.pop(RECIPE_OPTION, ""), file)
    if "env.name" in texts:
        texts["env.name"] = absolute_name(texts["env.name"])
    environment = texts.get("env.name") or _environment_of(tree)
    known = all_settings() | environment_fields(environment)
    options, problems = _parse_options(texts, known)
    in_file = _settings_of_file(tree, options)
    source = f"in {file or 'a recipe'}"
    problems += [
        describe_unknown_setting(name, known, source) for name in in_file if name not in known
    ]
    values = {name: value for name, value in {**in_file, **options}.items() if name in known}
    for name, problem in _describe_misfits(values, environment):
        problems.append(problem if name in options else f"{problem} ({source})")
    _raise_for(problems)
    given = in_file | fixed_thresholds(in_file)
    given |= options | fixed_thresholds(options)
    given = _with_types(given)
    values = {**defaults_for(given, serial), **_data_directory(environment), **given}
    config = from_dict(nest(_with_environment(values, environment)))
    check_consistency(config)
    return config


def _parse_options(
    texts: Mapping[str, str], known: Mapping[str, msgspec.inspect.Field]
) -> tuple[dict[str, Any], list[str]]:
    """The values of options, and what is wrong with the names and texts of others."""
    options = {}
    problems = []
    for name, text in texts.items():
        if name not in known:
            problems.append(describe_unknown_setting(name, known, "on the command line"))
            continue
        try:
            options[name] = _parse_value(name, known[name], text)
        except ConfigError as error:
            problems.append(str(error))
    return options, problems


def _describe_misfits(values: Mapping[str, Any], environment: str) -> list[tuple[str, str]]:
    """(Name, what is wrong with it) of each value that is not as its setting takes it."""
    problems = []
    known = all_settings() | environment_fields(environment)
    tree = nest(_keep_chosen_types(values))
    misfits = list(find_misfits(tree, Config))
    declared = settings_of_environment(environment)
    if declared is not None:
        own = value_at(tree, ENVIRONMENT_SETTINGS) or {}
        prefix = f"{ENVIRONMENT_SETTINGS}."
        misfits += [(f"{prefix}{name}", message) for name, message in find_misfits(own, declared)]
    for name, message in misfits:
        if name in known:
            words = describe_misfit(name, value_at(tree, name), message, known[name])
        else:
            words = f"{name.rstrip('.')}: {message}"
        problems.append((name, words))
    return problems


def _raise_for(problems: Sequence[str]) -> None:
    """Raise ConfigError that says all that is wrong, if anything is."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} settings are wrong:", *problems]))


def _read_trees(recipes: str, file: Path | None) -> dict[str, Any]:
    """The settings of recipes and of a file, which wins, as nested dictionaries."""
    tree = _read_toml(file) if file else {}
    if not recipes:
        return tree
    return nest({**flatten(read_recipes(recipes)), **flatten(tree)})


def _environment_of(tree: Mapping[str, Any]) -> str:
    """The environment that a file names, or the default one."""
    name = tree.get("env", {}).get("name")
    if isinstance(name, str):
        return absolute_name(name)
    return EnvSection().name


def _settings_of_file(tree: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """{full name: value} of a file's settings that the command line leaves in force."""
    values = {full_name(name): value for name, value in flatten(tree).items()}
    if isinstance(values.get("env.name"), str):
        values["env.name"] = absolute_name(values["env.name"])
    sections = {name.rpartition(".")[0] for name in all_settings()} | {ENVIRONMENT_SETTINGS}
    values = {name: value for name, value in values.items() if value != {} or name not in sections}
    environment = options.get("env.name")
    if environment is not None and environment != _environment_of(tree):
        declared = environment_fields(environment)
        values = {
            name: value
            for name, value in values.items()
            if not name.startswith(f"{ENVIRONMENT_SETTINGS}.") or name in declared
        }
    return _without_other_types(values, options)


def _with_environment(values: Mapping[str, Any], environment: str) -> dict[str, Any]:
    """Settings with all that the environment declares."""
    prefix = f"{ENVIRONMENT_SETTINGS}."
    declared = settings_of_environment(environment)
    if declared is None:
        return dict(values)
    own = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
    settings = msgspec.to_builtins(msgspec.convert(own, declared))
    return {**values, **{f"{prefix}{name}": value for name, value in settings.items()}}


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


def _keep_chosen_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the type of each tagged section, without those that it does not have."""
    chosen = dict(values)
    for section, types in tagged_sections().items():
        field = all_settings()[f"{section}.type"]
        kind = chosen.setdefault(f"{section}.type", default_of(field))
        for full in values:
            parent, _, name = full.rpartition(".")
            if parent == section and name != "type" and name not in types.get(kind, ()):
                del chosen[full]
    return chosen


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


def _data_directory(environment: str) -> dict[str, str]:
    """The setting of the environment's data, from the variable that its benchmark documents.

    A run's record then says what it played.
    """
    directory = os.environ.get(DATA_VARIABLES.get(environment, ""), "")
    return {f"{ENVIRONMENT_SETTINGS}.data": directory} if directory else {}


def full_name(name: str) -> str:
    """The setting that an option of the command line names, in full or by its short name."""
    name = name.replace("-", "_")
    name = SHORT_NAMES.get(name, name)
    if name in tagged_sections():
        return f"{name}.type"
    return name


def from_dict(tree: dict) -> Config:
    """Make a Config of nested dictionaries.

    Raises ConfigError naming each setting that does not fit.
    """
    _raise_for([problem for _, problem in _describe_misfits(flatten(tree), "")])
    return msgspec.convert(tree, Config)


def to_toml(config: Config) -> str:
    """The configuration as TOML, every setting with its description above it."""
    lines: list[str] = []
    values = flatten_config(config)
    section = ""
    for full, field in (all_settings() | environment_fields(config.env.name)).items():
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
        if section not in Config.__struct_fields__ and isinstance(values, dict):
            sections = Config.__struct_fields__
            raise ConfigError(
                f"there is no section [{section}] (in {file}); there are "
                f"{', '.join(sections)}{guess(section, sections)}"
            )
        if not isinstance(values, dict):
            example = full_name(section) if section in SHORT_NAMES else "section.name"
            raise ConfigError(
                f"{section!r} in {file} stands outside any section; write it as {example} = VALUE"
            )
    return tree


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
        raise ConfigError(f"{name}: {text!r} is not {expected}. {describe(name, field)}") from None
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
