"""Settings from the defaults, a TOML file and the command line, each checked; and back to TOML."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from config import Config, ConfigError, EnvSection, ModelSection
from config.consistency import check_consistency
from config.layers import COMMAND_LINE, Layer, find_last, keep_settings, stack_layers
from config.model_files import settings_of_model
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
from config.recipes import RECIPE_OPTION, find_recipe, own_recipes, recipe_names, split_names
from config.refusals import (
    describe_misfit,
    describe_unknown_setting,
    find_misfits,
    guess,
    value_at,
)
from config.sets import (
    EVALUATION_SETS,
    fill_empty_sets,
    find_set_misfits,
    set_fields,
    set_names,
    without_sets,
)
from config.template_arguments import (
    TEMPLATE_ARGUMENTS,
    argument_fields,
    find_argument_misfits,
    parse_argument,
)
from envs.registry import absolute_name, describe_missing, names_code, settings_of_environment
from protocol.chat_format import ChatOptions
from protocol.machine import computes_on_gpus

DATA_VARIABLES = {"alfworld": "ALFWORLD_DATA", "webshop": "WEBSHOP_DATA"}
"""Environment -> the variable that stands in for its setting `data`."""


class Resolution(NamedTuple):
    """The settings of a run, and where they are from."""

    config: Config
    recipes: list[str]
    """Names of the recipes that hold; a later one wins over an earlier one."""
    sources: dict[str, str]
    """{full name: where its value is from} of each setting that something gives."""


def resolve(
    file: Path | None = None, overrides: Mapping[str, str] | None = None, serial: bool = False
) -> Config:
    """Resolve the settings of a new run; `resolve_new` says how."""
    return resolve_new(file, overrides or {}, serial).config


def resolve_new(file: Path | None, overrides: Mapping[str, str], serial: bool) -> Resolution:
    """Resolve the recipes that a run takes by itself, those named, the TOML file, the overrides.

    A later one wins. Overrides are {full or short name: text of the value}; `recipe` names recipes.
    A run takes some by itself for its model and environment, and if it is `serial`
    (config/recipes.py). What nothing gives is as its section has it.

    Raises ConfigError for anything unknown, ill-typed, out of bounds or inconsistent.
    """
    texts, recipes = _split_overrides(overrides)
    layers = [_recipe_layer(name) for name in recipes]
    if file is not None:
        layers.append(_file_layer(file))
    return _resolve_layers(layers, texts, serial)


def resolve_recorded(file: Path, overrides: Mapping[str, str], moved_to: str = "") -> Resolution:
    """Resolve the settings that a run has recorded, then recipes that are named, then overrides.

    The record has every setting, of the run's recipes too: those named here change it. But one that
    the run takes by itself stays below the record, and is not among the recipes that hold.
    `moved_to`, or else an override, names the environment if it is not where it was.

    Raises ConfigError as `resolve_new` and `locate_environment` do.
    """
    texts, recipes = _split_overrides(overrides)
    record = _file_layer(file)
    environment = locate_environment(file, moved_to or texts.get("env.name", ""))
    record = record._replace(settings=record.settings | {"env.name": environment})
    layers = [record, *(_recipe_layer(name) for name in recipes)]
    resolution = _resolve_layers(layers, texts, serial=False)
    config = resolution.config
    own = own_recipes(config.model.name, config.env.name, serial=False)
    changing = [name for name in resolution.recipes if name in recipes and name not in own]
    return resolution._replace(recipes=changing)


def locate_environment(file: Path, moved_to: str) -> str:
    """The name of the environment of a run's record: `moved_to` if it is not where it was.

    Raises ConfigError if it is not, and `moved_to` names no code.
    """
    recorded = find_last([_file_layer(file)], "env.name") or EnvSection().name
    missing = describe_missing(recorded)
    if not missing:
        return recorded
    if not names_code(moved_to):
        raise ConfigError(f"{missing}; if it has moved, say where it is now: --env ./FILE.py:NAME")
    return absolute_name(moved_to)


def _split_overrides(overrides: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The overrides by their full names, and the recipes that they name."""
    texts = {full_name(name): text for name, text in overrides.items()}
    if "env.name" in texts:
        texts["env.name"] = absolute_name(texts["env.name"])
    return texts, split_names(texts.pop(RECIPE_OPTION, ""))


def _resolve_layers(layers: list[Layer], texts: Mapping[str, str], serial: bool) -> Resolution:
    """Resolve what is given: layers, and over them the texts of options.

    A model's recipe is below all that is given, even if it is among that: else it would win over
    what it has for the environment.
    """
    named = [*layers, Layer(COMMAND_LINE, dict(texts))]
    environment = find_last(named, "env.name") or EnvSection().name
    model = find_last(named, "model.name") or ModelSection().name
    own = [_recipe_layer(name) for name in own_recipes(model, environment, serial)]
    known = all_settings() | environment_fields(environment)
    given = [_without_foreign_sets(layer, environment) for layer in layers if layer not in own]
    for layer in (*given, Layer(COMMAND_LINE, dict(texts))):
        known |= set_fields(set_names(layer.settings), environment)
    for layer in (*own, *given, Layer(COMMAND_LINE, dict(texts))):
        known |= argument_fields(layer.settings)
    options, problems = _parse_options(texts, known)
    problems += _describe_unknown_settings(given, known)
    by_model = Layer("the model's own files", settings_of_model(model, _chat_options(named)))
    layers = [_gpu_layer(named, model), by_model, *own, _data_layer(environment), *given]
    layers.append(Layer(COMMAND_LINE, options))
    settings = stack_layers(keep_settings(layer, known) for layer in layers)
    values = {full: setting.value for full, setting in settings.items()}
    sources = {full: setting.source for full, setting in settings.items()}
    for name, problem in _describe_misfits(values, environment):
        source = sources.get(name, COMMAND_LINE)
        problems.append(problem if source == COMMAND_LINE else f"{problem} (in {source})")
    _raise_for(problems)
    config = from_dict(nest(_with_environment(_with_types(values), environment)))
    check_consistency(config)
    return Resolution(config, [layer.recipe for layer in layers if layer.recipe], sources)


def _chat_options(layers: Sequence[Layer]) -> ChatOptions:
    """How layers have prompts rendered."""
    arguments = {}
    for layer in layers:
        for full in argument_fields(layer.settings):
            value = layer.settings[full]
            if layer.source == COMMAND_LINE:
                value = parse_argument(value)
            arguments[full.removeprefix(f"{TEMPLATE_ARGUMENTS}.")] = value
    return ChatOptions(find_last(layers, "model.system_prompt"), nest(arguments))


def read_recipe(name: str) -> dict[str, Any]:
    """{full name: value} of a recipe's settings.

    Raises ConfigError for one that does not exist, or is no file of settings.
    """
    return _settings_of_tree(_read_toml(find_recipe(name), f"--{RECIPE_OPTION}"))


@functools.cache
def all_recipes() -> dict[str, dict[str, Any]]:
    """{name: settings} of the recipes that come with the project."""
    return {name: read_recipe(name) for name in recipe_names()}


def _recipe_layer(name: str) -> Layer:
    return Layer(f"recipe {name}", read_recipe(name), recipe=name)


def _file_layer(file: Path) -> Layer:
    """The settings of a file that was given. Raises ConfigError for one that cannot be read."""
    return Layer(str(file), _settings_of_tree(_read_toml(file, "--config")))


def _settings_of_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{full name: value} of a file's settings."""
    sections = {name.rpartition(".")[0] for name in all_settings()}
    sections |= {ENVIRONMENT_SETTINGS, EVALUATION_SETS, TEMPLATE_ARGUMENTS}
    values = {full_name(name): value for name, value in flatten(tree).items()}
    if isinstance(values.get("env.name"), str):
        values["env.name"] = absolute_name(values["env.name"])
    return fill_empty_sets(
        {name: value for name, value in values.items() if value != {} or name not in sections}
    )


def _without_foreign_sets(layer: Layer, environment: str) -> Layer:
    """Leave evaluation sets out of a layer that is of another environment, by its own word."""
    if find_last([layer], "env.name") in ("", environment):
        return layer
    return layer._replace(settings=without_sets(layer.settings))


def _describe_unknown_settings(
    layers: Sequence[Layer], known: Mapping[str, msgspec.inspect.Field]
) -> list[str]:
    """Say of each setting that neither the run has, nor the environment of its layer."""
    problems = []
    environment = EnvSection().name
    for layer in layers:
        environment = find_last([layer], "env.name") or environment
        there = {**known, **environment_fields(environment)}
        problems += [
            describe_unknown_setting(name, known, f"in {layer.source}")
            for name in layer.settings
            if name not in there
        ]
    return problems


def _parse_options(
    texts: Mapping[str, str], known: Mapping[str, msgspec.inspect.Field]
) -> tuple[dict[str, Any], list[str]]:
    """The values of options, and what is wrong with the names and texts of others."""
    options = {}
    problems = []
    for name, text in texts.items():
        if name not in known:
            problems.append(describe_unknown_setting(name, known, f"on the {COMMAND_LINE}"))
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
    known |= set_fields(set_names(values), environment)
    tree = nest(_keep_chosen_types(values))
    misfits = list(find_misfits(nest(_keep_chosen_types(without_sets(values))), Config))
    misfits += find_set_misfits(values, environment)
    misfits += find_argument_misfits(values)
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


def _data_layer(environment: str) -> Layer:
    """The setting of the environment's data, from the variable that its benchmark documents.

    A run's record then says what it played.
    """
    variable = DATA_VARIABLES.get(environment, "")
    directory = os.environ.get(variable, "")
    if not directory:
        return Layer(variable, {})
    return Layer(variable, {f"{ENVIRONMENT_SETTINGS}.data": directory})


def _gpu_layer(layers: Iterable[Layer], model: str) -> Layer:
    """The precision on GPUs: those that are here, or that `layers` speak of.

    The tiny policy's numbers are of float32.
    """
    planned = any(layer.settings.get("cluster.gpus") not in (None, 0, "0") for layer in layers)
    if model == "tiny" or not (planned or computes_on_gpus()):
        return Layer("", {})
    precision = {"learner.precision": "bfloat16", "engine.dtype": "bfloat16"}
    return Layer("GPUs compute with it", precision)


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


def read_record(file: Path) -> Config:
    """The settings that a run has recorded, all of them, without a look at its environment.

    Raises ConfigError for a file that is no record of this version.
    """
    try:
        return from_dict(_read_toml(file, "run.dir"))
    except ConfigError as error:
        raise ConfigError(f"another version of this project wrote {file}: {error}") from None


def to_toml(config: Config, notes: Mapping[str, str] | None = None) -> str:
    """The configuration as TOML, every setting with its description above it.

    `notes` ({full name: a few words}) stand behind the settings that they are about.
    """
    notes = notes or {}
    lines: list[str] = []
    values = flatten_config(config)
    section = ""
    known = all_settings() | environment_fields(config.env.name)
    known |= set_fields(config.eval.sets, config.env.name)
    known |= argument_fields(values)
    for full, field in known.items():
        if full not in values:
            continue
        if full.rpartition(".")[0] != section:
            section = full.rpartition(".")[0]
            lines += ["", f"[{section}]"]
        note = f"  # {notes[full]}" if full in notes else ""
        lines += [f"# {description(field)}", f"{field.name} = {_toml(values[full])}{note}"]
    return "\n".join(lines[1:]) + "\n"


def find_changes(config: Config) -> dict[str, tuple[Any, Any]]:
    """{full name: (default, value)} of the settings that are not as their sections have them.

    Of an environment that is not here, these are all of its settings.
    """
    values = flatten_config(config)
    types = {f"{section}.type": values[f"{section}.type"] for section in tagged_sections()}
    given = types
    with contextlib.suppress(ValueError):
        given = _with_environment(types, config.env.name)
    plain = from_dict(nest(given))
    defaults = flatten_config(plain) | {full: default_of(all_settings()[full]) for full in types}
    of_sets = set_fields(config.eval.sets, "")
    defaults |= {full: default_of(field) for full, field in of_sets.items()}
    return {
        full: (defaults.get(full), value)
        for full, value in values.items()
        if value != defaults.get(full)
    }


def _toml(value: Any) -> str:
    """A value as TOML: JSON but for characters beyond 16 bits, and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(file: Path, option: str) -> dict[str, Any]:
    """Read a file of settings that an option names. Raises ConfigError if it is none."""
    try:
        tree = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{option}: there is no file {file}") from None
    except OSError as error:
        raise ConfigError(f"{option}: {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: {file} is not valid TOML: {error}") from None
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
    if isinstance(kind, msgspec.inspect.AnyType):
        return parse_argument(text)
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
