"""JSON files of a Hugging Face model, in which null stands for what is not set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_model_json(file: Path) -> dict[str, Any]:
    """Read the table of a model's file, without what is null in it.

    Raises ValueError, naming the file, for one that holds anything else, and OSError.
    """
    try:
        table = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"model.name: {file} is no JSON: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"model.name: {file} holds no table of JSON, but {str(table)[:40]!r}")
    return _drop_nulls(table)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the language model in a config.json, which may have other models beside it."""
    text = config.get("text_config")
    if isinstance(text, dict):
        return text
    return config


def _drop_nulls(table: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in table.items():
        if isinstance(value, dict):
            kept[name] = _drop_nulls(value)
        elif value is not None:
            kept[name] = value
    return kept
