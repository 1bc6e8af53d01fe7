"""Recipes: settings that go together, as TOML files in recipes/ that can be composed.

`--recipe alfworld,t2po-paper`: a later one wins over an earlier one, then come a file (`--config`)
and the command line.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from config.options import flatten, nest
from config.refusals import guess
from config.section import ConfigError

RECIPE_OPTION = "recipe"
"""The option that names recipes, which is no setting: a run's record has their settings."""

DIRECTORY = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(file.stem for file in DIRECTORY.glob("*.toml"))


def read_recipes(names: str) -> dict[str, Any]:
    """The settings of recipes, whose names are separated by commas, as nested dictionaries.

    Raises ConfigError for a recipe that does not exist.
    """
    values: dict[str, Any] = {}
    for name in names.split(","):
        file = DIRECTORY / f"{name.strip()}.toml"
        if name.strip() not in recipe_names():
            raise ConfigError(
                f"--recipe: there is no recipe {name.strip()!r}; there are: "
                f"{', '.join(recipe_names())}{guess(name.strip(), recipe_names())}"
            )
        values |= flatten(tomllib.loads(file.read_text()))
    return nest(values)
