"""Environments by name.

Third parties add theirs without touching this project, by an entry point:

[project.entry-points."foray.environments"]
mygame = "mypackage.mymodule:make"        # make(**settings) -> envs.base.Environment
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import msgspec

from envs.base import Environment
from envs.settings import (
    AlfWorldSettings,
    GymnasiumSettings,
    SearchSettings,
    TextArenaSettings,
    WebShopSettings,
)

ENTRY_POINT_GROUP = "foray.environments"

# Named, not imported: an actor loads only the environment it plays.
_BUILT_IN = {
    "alfworld": "envs.alfworld.environment:AlfWorld",
    "gymnasium": "envs.games.gymnasium:Gymnasium",
    "search": "envs.search.environment:Search",
    "textarena": "envs.games.textarena:TextArena",
    "webshop": "envs.webshop.environment:WebShop",
}


BUILT_IN_SETTINGS: dict[str, type[msgspec.Struct]] = {
    "alfworld": AlfWorldSettings,
    "gymnasium": GymnasiumSettings,
    "search": SearchSettings,
    "textarena": TextArenaSettings,
    "webshop": WebShopSettings,
}


def environment_names() -> list[str]:
    """Names that `make_environment` accepts in this installation."""
    return sorted(
        _BUILT_IN.keys() | {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    )


def settings_of_environment(name: str) -> type[msgspec.Struct] | None:
    """The struct of settings that an environment declares; None without one, or without any such.

    One of one's own has it as the attribute `Settings` of its factory.
    """
    if name in BUILT_IN_SETTINGS:
        return BUILT_IN_SETTINGS[name]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return getattr(point.load(), "Settings", None)
    return None


def make_environment(name: str, **settings: object) -> Environment:
    """Make an environment; `settings` are those of its factory. ValueError for an unknown name."""
    factory: Callable[..., Environment]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        factory = getattr(import_module(module), attribute)
    else:
        plugins: list[EntryPoint] = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
        if not plugins:
            raise ValueError(
                f"unknown environment {name!r}; known: {', '.join(environment_names())}"
            )
        factory = plugins[0].load()
    return factory(**settings)
