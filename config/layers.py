"""Layers of settings, of which a later one wins over an earlier one.

A run has those of its recipes, of a file and of the command line (config/resolve.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from config.control import rates_of_fixed_thresholds
from config.options import tagged_sections

COMMAND_LINE = "command line"


class Layer(NamedTuple):
    """Settings that one source gives together."""

    source: str
    """Origin of the settings, in words."""
    settings: dict[str, Any]
    """{full name: value}."""
    recipe: str = ""
    """The recipe's name, if it is one."""


class Given(NamedTuple):
    """A setting's value, and the source of the layer that gives it."""

    value: Any
    source: str


def find_last(layers: Iterable[Layer], full: str) -> str:
    """Return the text that the last layer with a setting gives it; empty if none has one."""
    texts = [layer.settings.get(full) for layer in layers]
    return next((text for text in reversed(texts) if text and isinstance(text, str)), "")


def stack_layers(layers: Iterable[Layer]) -> dict[str, Given]:
    """Return {full name: what the last layer with it gives}.

    A layer that gives a section another type ends the settings below it that this type has not. One
    that gives a threshold, and no rate, means it to hold: its rate is then 0.
    """
    stacked: dict[str, Given] = {}
    for layer in layers:
        settings = rates_of_fixed_thresholds(layer.settings) | layer.settings
        stacked = _without_other_types(stacked, settings)
        stacked |= {full: Given(value, layer.source) for full, value in settings.items()}
    return stacked


def _without_other_types(
    stacked: dict[str, Given], settings: Mapping[str, Any]
) -> dict[str, Given]:
    """Return what is in force below a layer whose `settings` may give a section another type."""
    kept = dict(stacked)
    for section, types in tagged_sections().items():
        names = types.get(str(settings.get(f"{section}.type")))
        if names is None:
            continue
        for full in stacked:
            parent, _, name = full.rpartition(".")
            if parent == section and name not in names and name != "type":
                del kept[full]
    return kept


def keep_settings(layer: Layer, known: Container[str]) -> Layer:
    """Return a layer with those of its settings alone that are known."""
    settings = {full: value for full, value in layer.settings.items() if full in known}
    return layer._replace(settings=settings)
