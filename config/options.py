"""Every setting as an option: its names, its sentence, its type."""

from __future__ import annotations

from typing import Any

import msgspec

from config import Config

SHORT_NAMES = {
    "actors": "actor.count",
    "engines": "engine.count",
    "env": "env.name",
    "model": "model.name",
    "control": "control.mode",
    "algorithm": "learner.algorithm",
    "max_staleness": "learner.max_staleness",
    "updates": "run.max_updates",
    "minutes": "run.max_minutes",
    "tokens": "run.max_tokens",
    "seed": "run.seed",
    "run_dir": "run.dir",
}
"""What the most used settings are called on the command line, without their section."""


SECRETS = ("dashboard.token",)


def all_settings() -> dict[str, msgspec.inspect.Field]:
    """Every setting by its full name, in the order of this file."""
    fields = {}
    for section in msgspec.inspect.type_info(Config).fields:
        for field in section.type.fields:
            fields[f"{section.name}.{field.name}"] = field
    return fields


def values_of(config: Config) -> dict[str, Any]:
    """{full name: value} of all settings, to be shown: of secrets only whether they are set."""
    values = _values(config)
    return values | {name: "(set)" for name in SECRETS if values[name]}


def _values(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, values in msgspec.to_builtins(config).items()
        for name, value in values.items()
    }


def describe(name: str) -> str:
    """One sentence on the setting `name`, its choices and its default."""
    field = all_settings()[name]
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
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def description(field: msgspec.inspect.Field) -> str:
    """The sentence that says what a setting does."""
    return (
        field.type.extra_json_schema["description"]
        if isinstance(field.type, msgspec.inspect.Metadata)
        else ""
    )


def kind_of(field: msgspec.inspect.Field) -> msgspec.inspect.Type:
    """The type of a setting, without its bounds."""
    return field.type.type if isinstance(field.type, msgspec.inspect.Metadata) else field.type
