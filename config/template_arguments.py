"""Settings of a model's chat template, which are the template's own.

They are `model.template_arguments.NAME`. Whether the template takes them is known once the model is
there (protocol/chat_template.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

TEMPLATE_ARGUMENTS = "model.template_arguments"
"""The section whose settings are arguments of the chat template."""

_PREFIX = f"{TEMPLATE_ARGUMENTS}."


def argument_fields(full_names: Iterable[str]) -> dict[str, msgspec.inspect.Field]:
    """Those of the settings of these full names that are arguments of a template."""
    schema = {"description": "Argument of the model's chat template"}
    return {
        full: msgspec.inspect.Field(
            name=full.rpartition(".")[2],
            encode_name=full.rpartition(".")[2],
            type=msgspec.inspect.Metadata(msgspec.inspect.AnyType(), extra_json_schema=schema),
            required=False,
            default=None,
        )
        for full in full_names
        if full.startswith(_PREFIX)
    }


def find_argument_misfits(full_names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(Full name, what is wrong) of each argument whose name no template could have."""
    for full in argument_fields(full_names):
        if not all(part.isidentifier() for part in full.split(".")):
            yield full, "its name must be letters, digits and underscores, as a template's are"


def parse_argument(text: str) -> Any:
    """The value of an argument that is written on the command line: JSON, or else a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except ValueError:
        return text
