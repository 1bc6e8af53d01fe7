"""Settings of evaluation sets, whose names are the user's: `eval.sets.NAME.SETTING`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from config import EvalSetSection
from config.options import (
    ENVIRONMENT_SETTINGS,
    as_struct_type,
    environment_fields,
    kind_of,
    nest,
)
from config.refusals import find_misfits, value_at
from envs.registry import settings_of_environment

EVALUATION_SETS = "eval.sets"
"""The section in which each evaluation set has a section of its own."""

SET_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names of evaluation sets: parts of names of metrics."""


def set_fields(names: Iterable[str], environment: str) -> dict[str, msgspec.inspect.Field]:
    """The settings of evaluation sets of these names, by their full names.

    Each may have other settings of the environment of that name, too.
    """
    own = as_struct_type(msgspec.inspect.type_info(EvalSetSection)).fields
    inner = {
        name.removeprefix("env."): field for name, field in environment_fields(environment).items()
    }
    fields: dict[str, msgspec.inspect.Field] = {}
    for name in names:
        section = f"{EVALUATION_SETS}.{name}"
        for field in own:
            if not isinstance(kind_of(field), msgspec.inspect.DictType):
                fields[f"{section}.{field.name}"] = field
        fields |= {f"{section}.{full}": field for full, field in inner.items()}
    return fields


def set_names(full_names: Iterable[str]) -> list[str]:
    """The evaluation sets that settings of these full names are of, in their order."""
    prefix = f"{EVALUATION_SETS}."
    return list(
        dict.fromkeys(
            full.removeprefix(prefix).partition(".")[0]
            for full in full_names
            if full.startswith(prefix)
        )
    )


def without_sets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of evaluation sets."""
    prefix = f"{EVALUATION_SETS}."
    return {full: value for full, value in values.items() if not full.startswith(prefix)}


def fill_empty_sets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which an empty table of an evaluation set says what the set is by default."""
    filled = {}
    for full, value in values.items():
        section, _, name = full.rpartition(".")
        if value != {} or not full.startswith(f"{EVALUATION_SETS}."):
            filled[full] = value
        elif section == EVALUATION_SETS:
            filled[f"{full}.split"] = EvalSetSection().split
        elif name != "settings":
            filled[full] = value  # no table belongs there
    return filled


def find_set_misfits(values: Mapping[str, Any], environment: str) -> Iterator[tuple[str, str]]:
    """(Full name, what is wrong) of each setting of an evaluation set that does not fit."""
    tree = nest(values)
    declared = settings_of_environment(environment)
    for name in set_names(values):
        section = f"{EVALUATION_SETS}.{name}"
        own = value_at(tree, section)
        if not SET_NAME.fullmatch(name):
            yield (
                section,
                f"{name!r} cannot be a set's name, which is part of names of metrics: give it "
                "lower-case letters, digits and underscores, and a letter first",
            )
        if not isinstance(own, Mapping):
            continue
        for misfit, message in find_misfits(own, EvalSetSection):
            yield f"{section}.{misfit}", message
        others = own.get("settings")
        if declared is None or not isinstance(others, Mapping):
            continue
        settings = {**(value_at(tree, ENVIRONMENT_SETTINGS) or {}), **others}
        for misfit, message in find_misfits(settings, declared):
            if misfit in others:
                yield f"{section}.settings.{misfit}", message
