"""Recipes: settings that go together, as TOML files in recipes/ that can be composed.

A run takes some by itself, by their names (`own_recipes`). `--recipe alfworld,t2po-paper` names
others: a later one wins over an earlier one, then come a file (`--config`) and the command line.
"""

from __future__ import annotations

from pathlib import Path

from config.model import NAMED_MODELS
from config.refusals import guess
from config.section import ConfigError

RECIPE_OPTION = "recipe"
"""The option that names recipes, which is no setting: a run's record has their settings."""

DIRECTORY = Path(__file__).parents[1] / "recipes"

SUFFIX = ".toml"

SERIAL = "serial"
"""The recipe of a serial run."""


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(file.stem for file in DIRECTORY.glob(f"*{SUFFIX}"))


def own_recipes(model: str, environment: str, serial: bool) -> list[str]:
    """Name the recipes that a run takes by itself; a later one wins over an earlier one.

    They are MODEL and MODEL-ENVIRONMENT, and in a serial run serial and serial-MODEL: those that
    there are.
    """
    names = []
    if model in NAMED_MODELS:
        names += [model, f"{model}-{environment}"]
    if serial:
        names += [SERIAL, f"{SERIAL}-{model}"]
    there_are = recipe_names()
    return [name for name in names if name in there_are]


def is_own_recipe(name: str) -> bool:
    """Tell whether some run takes a recipe by itself, by its name."""
    first, _, rest = name.partition("-")
    return first in (*NAMED_MODELS, SERIAL) and rest in ("", *recipe_names())


def split_names(text: str) -> list[str]:
    """The recipes that the option names, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def with_absolute_paths(text: str) -> str:
    """The recipes that the option names, as a process in another directory finds them."""
    names = split_names(text)
    return ",".join(
        str(find_recipe(name).absolute()) if name.endswith(SUFFIX) else name for name in names
    )


def find_recipe(name: str) -> Path:
    """The file of a recipe: a name of recipes/, or the path of a TOML file of one's own.

    Raises ConfigError for a name that no recipe has.
    """
    if name.endswith(SUFFIX):
        return Path(name).expanduser()
    if name in recipe_names():
        return DIRECTORY / f"{name}{SUFFIX}"
    raise ConfigError(
        f"--recipe: there is no recipe {name!r}; there are: {', '.join(recipe_names())}, and files "
        f"of your own ({SUFFIX}){guess(name, recipe_names())}"
    )
