"""Every setting as an option: its names, its sentence, its type."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from config import Config, ConfigError
from envs.registry import settings_of_environment

SHORT_NAMES = {
    "actors": "actor.count",
    "engines": "engine.count",
    "env": "env.name",
    "model": "model.name",
    "control": "control.mode",
    "algorithm": "learner.algorithm.type",
    "max_staleness": "learner.max_staleness",
    "updates": "run.max_updates",
    "minutes": "run.max_minutes",
    "tokens": "run.max_tokens",
    "seed": "run.seed",
    "run_dir": "run.dir",
}
"""Short names of the most used settings on the command line, without their section."""


ENVIRONMENT_SETTINGS = "env.settings"
"""The section whose settings the environment declares."""

SECRETS = ("dashboard.token",)

COMMAND_VARIABLE = "FORAY_COMMAND"
"""Environment variable by which processes of a run know the command that it was begun with."""


def this_command() -> str:
    """The command to name where a message says what to do: `foray` if that was typed."""
    return os.environ.get(COMMAND_VARIABLE, "python run.py")


@functools.cache
def all_settings() -> dict[str, msgspec.inspect.Field]:
    """Every setting by its full name, in the order of the sections.

    Those of the environment are not among them (`environment_fields`).
    """
    fields: dict[str, msgspec.inspect.Field] = {}
    for section in as_struct_type(msgspec.inspect.type_info(Config)).fields:
        fields |= _settings_in(section)
    return fields


def _settings_in(section: msgspec.inspect.Field) -> dict[str, msgspec.inspect.Field]:
    """The settings of a section and of those inside it; its own come first.

    A tagged section has its type, and the settings of all types.
    """
    kind = kind_of(section)
    if isinstance(kind, msgspec.inspect.UnionType):
        own = {"type": _type_setting(section, kind)}
        fields = [field for variant in kind.types for field in as_struct_type(variant).fields]
    else:
        own = {}
        fields = list(as_struct_type(kind).fields)
    inner: dict[str, msgspec.inspect.Field] = {}
    for field in fields:
        if isinstance(kind_of(field), msgspec.inspect.DictType):
            continue  # the environment's
        if is_section(kind_of(field)):
            inner |= _settings_in(field)
        else:
            own.setdefault(field.name, field)
    return {f"{section.name}.{name}": field for name, field in {**own, **inner}.items()}


def environment_fields(name: str) -> dict[str, msgspec.inspect.Field]:
    """The settings that the environment of that name declares, by their full names.

    Raises ConfigError for an environment whose code cannot be loaded.
    """
    try:
        declared = settings_of_environment(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if declared is None:
        return {}
    kind = as_struct_type(msgspec.inspect.type_info(declared))
    return {f"{ENVIRONMENT_SETTINGS}.{field.name}": field for field in kind.fields}


def as_struct_type(kind: msgspec.inspect.Type) -> msgspec.inspect.StructType:
    """Return a type that is a section's as what it is; TypeError for another one."""
    if not isinstance(kind, msgspec.inspect.StructType):
        raise TypeError(f"{kind} is not the type of a section")
    return kind


def is_section(kind: msgspec.inspect.Type) -> bool:
    """Tell if a type is that of a section, and not of a setting."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return all(isinstance(one, msgspec.inspect.StructType) for one in kind.types)
    return isinstance(kind, msgspec.inspect.StructType)


def _tags(kind: msgspec.inspect.UnionType) -> tuple[str | int, ...]:
    """The names of the types of a tagged section."""
    tags = (as_struct_type(variant).tag for variant in kind.types)
    return tuple(tag for tag in tags if tag is not None)


def _type_setting(
    section: msgspec.inspect.Field, kind: msgspec.inspect.UnionType
) -> msgspec.inspect.Field:
    """The setting that chooses among the types of a tagged section."""
    choices = msgspec.inspect.LiteralType(_tags(kind))
    return msgspec.inspect.Field(
        name="type",
        encode_name="type",
        type=msgspec.inspect.Metadata(
            choices, extra_json_schema={"description": description(section)}
        ),
        required=False,
        default=section.default.type,
    )


@functools.cache
def tagged_sections() -> dict[str, dict[str, frozenset[str]]]:
    """Tagged section -> its types -> the names of a type's settings."""
    sections: dict[str, dict[str, frozenset[str]]] = {}
    for section in as_struct_type(msgspec.inspect.type_info(Config)).fields:
        for field in as_struct_type(kind_of(section)).fields:
            kind = kind_of(field)
            if isinstance(kind, msgspec.inspect.UnionType) and is_section(kind):
                variants = [as_struct_type(variant) for variant in kind.types]
                sections[f"{section.name}.{field.name}"] = {
                    str(variant.tag): frozenset(one.name for one in variant.fields)
                    for variant in variants
                }
    return sections


def values_of(config: Config) -> dict[str, Any]:
    """{full name: value} of all settings, to be shown: of secrets only whether they are set."""
    values = flatten_config(config)
    return values | {name: "(set)" for name in SECRETS if values[name]}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{full name: value} of nested dictionaries."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            values |= flatten(value, f"{full}.")
        else:
            values[full] = value
    return values


def flatten_config(config: Config) -> dict[str, Any]:
    """{full name: value} of all settings."""
    values = flatten(msgspec.to_builtins(config))
    return {name: value for name, value in values.items() if value != {}}


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of {full name: value}."""
    tree: dict[str, Any] = {}
    for full, value in values.items():
        *sections, name = full.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


def describe(name: str, field: msgspec.inspect.Field) -> str:
    """One sentence on the setting `name`, its choices and its default."""
    default = default_of(field)
    kind = kind_of(field)
    choices = (
        f"one of {', '.join(map(str, kind.values))}; "
        if isinstance(kind, msgspec.inspect.LiteralType)
        else ""
    )
    return f"It is: {description(field)} ({choices}default {default!r})."


def default_of(field: msgspec.inspect.Field) -> Any:
    """The value of a setting that is not given."""
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    return field.default_factory()


def description(field: msgspec.inspect.Field) -> str:
    """The sentence that says what a setting does."""
    if not isinstance(field.type, msgspec.inspect.Metadata):
        return ""
    schema = field.type.extra_json_schema or {}
    return schema["description"]


def kind_of(field: msgspec.inspect.Field) -> msgspec.inspect.Type:
    """The type of a setting, without its bounds."""
    if isinstance(field.type, msgspec.inspect.Metadata):
        return field.type.type
    return field.type
