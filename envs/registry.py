"""Environments by name, or by the file or module that has them.

    alfworld                  one of ours, or one registered by an entry point
    ./mygame.py:MyGame        MyGame in a file; `./mygame.py` if it has one environment
    mypackage.games:MyGame    MyGame in a module that Python finds
    reasoning-gym:gcd,lcm     a library's adapter, and what of the library is played

An actor is told the name by its run's controller, and calls what it finds with settings from there.
So that no name means any other function of its machine, code by name has to be the class of an
environment.

A package registers a name by an entry point:

[project.entry-points."foray.environments"]
mygame = "mypackage.mymodule:make"        # make(**settings) -> envs.base.Environment
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeGuard

import msgspec

from envs.base import Environment
from envs.conversation import find_flaw, is_conversation
from envs.harness import DEFAULT_MAX_TURNS, HARNESS_NAMES, find_harness_flaw, is_harness
from envs.settings import (
    AlfWorldSettings,
    CommandSettings,
    GymnasiumSettings,
    OpenEnvSettings,
    ReasoningGymSettings,
    SearchSettings,
    SkyRLGymSettings,
    TextArenaSettings,
    WebShopSettings,
)
from envs.user_errors import describe_error

ENTRY_POINT_GROUP = "foray.environments"

METHODS = ("size", "start", "view", "prompt", "parse")
"""Methods that tell the class of an environment from others in its file."""

CONVERSATION_NAMES = ("size", "start", "tools")
"""What tells the class of an environment that talks in messages (envs/conversation.py)."""

_INTERFACES = (METHODS, CONVERSATION_NAMES, HARNESS_NAMES)

MOST_MISSING = 2
"""Names that a class may lack to be taken for an environment with a mistake."""

_WANTED = (
    f"{', '.join(METHODS)} (or, to talk in messages, {', '.join(CONVERSATION_NAMES)}; or, of an "
    f"agent with a client, {', '.join(HARNESS_NAMES)})"
)

# Named, not imported: an actor loads only the environment it plays.
_BUILT_IN = {
    "alfworld": "envs.alfworld.environment:AlfWorld",
    "arithmetic": "envs.arithmetic:Arithmetic",
    "gymnasium": "envs.games.gymnasium:Gymnasium",
    "harness": "envs.command:CommandHarness",
    "openenv": "envs.adapters.openenv:OpenEnv",
    "reasoning-gym": "envs.adapters.reasoning_gym:ReasoningGym",
    "search": "envs.search.environment:Search",
    "skyrl-gym": "envs.adapters.skyrl_gym:SkyRLGym",
    "textarena": "envs.games.textarena:TextArena",
    "webshop": "envs.webshop.environment:WebShop",
}

_ADAPTERS = ("openenv", "reasoning-gym", "skyrl-gym")
"""Built-in environments that take a target after a colon, as the keyword `target`."""

BUILT_IN_SETTINGS: dict[str, type[msgspec.Struct]] = {
    "alfworld": AlfWorldSettings,
    "gymnasium": GymnasiumSettings,
    "harness": CommandSettings,
    "openenv": OpenEnvSettings,
    "reasoning-gym": ReasoningGymSettings,
    "search": SearchSettings,
    "skyrl-gym": SkyRLGymSettings,
    "textarena": TextArenaSettings,
    "webshop": WebShopSettings,
}


class EnvironmentNotFound(ValueError):
    """No environment has that name here; the message says what to do."""


def environment_names() -> list[str]:
    """Names that `make_environment` accepts in this installation."""
    return sorted(
        _BUILT_IN.keys() | {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    )


def settings_of_environment(name: str) -> type[msgspec.Struct] | None:
    """The struct of settings that an environment declares.

    None without an environment of that name, or without settings. One of one's own has the struct
    as the attribute `Settings` of its factory. Raises ValueError for code that cannot be loaded.
    """
    built_in = _without_target(name)
    if built_in in BUILT_IN_SETTINGS:
        return BUILT_IN_SETTINGS[built_in]
    if not name:  # settings of none: to look through all that is installed takes milliseconds
        return None
    if name not in environment_names() and not names_code(name):
        return None
    return getattr(find_factory(name), "Settings", None)


class Environments(NamedTuple):
    """The environment that is trained in, and those of evaluation sets with other settings."""

    training: Environment
    by_set: Mapping[str, Environment] = MappingProxyType({})

    def of_set(self, evaluation_set: str) -> Environment:
        """The environment of a set; of one without other settings, that of training."""
        return self.by_set.get(evaluation_set, self.training)


def make_environments(
    name: str, settings: Mapping[str, Any], settings_by_set: Mapping[str, Mapping[str, Any]]
) -> Environments:
    """Make the environments of a run, one for all sets with equal settings."""
    made = [(settings, make_environment(name, **settings))]
    by_set = {}
    for evaluation_set, others in settings_by_set.items():
        equal = [environment for known, environment in made if known == others]
        if not equal:
            equal = [make_environment(name, **others)]
            made.append((others, equal[0]))
        by_set[evaluation_set] = equal[0]
    return Environments(made[0][1], by_set)


def make_environment(name: str, **settings: object) -> Environment:
    """Make an environment; `settings` are those of its factory.

    `max_turns` of one that talks in messages, or is a harness, is set here where its factory does
    not take it. Raises as `find_factory` does, and ValueError for parts that are none.
    """
    factory = find_factory(name)
    adapter, _, target = name.partition(":")
    if adapter in _ADAPTERS:
        settings["target"] = target
    max_turns = None
    if is_conversation(factory) or is_harness(factory):
        if "history" in settings and not _takes_keyword(factory, "history"):
            raise ValueError(
                f"env.history: {name} talks in messages, all of which the policy reads; leave it "
                "out"
            )
        if not _takes_keyword(factory, "max_turns"):
            max_turns = settings.pop("max_turns", None)
    environment: Any = factory(**settings)
    if max_turns is not None:
        environment.max_turns = max_turns
    flaw = ""
    if is_conversation(environment):
        flaw = find_flaw(environment)
    elif is_harness(environment):
        if not hasattr(environment, "max_turns"):
            environment.max_turns = DEFAULT_MAX_TURNS
        flaw = find_harness_flaw(environment)
    if flaw:
        raise ValueError(f"env.name: {name}: {flaw}")
    return environment


def _takes_keyword(factory: Callable[..., Any], keyword: str) -> bool:
    """Tell whether a function takes an argument of this name."""
    parameters = inspect.signature(factory).parameters.values()
    return any(each.name == keyword or each.kind is each.VAR_KEYWORD for each in parameters)


def absolute_name(name: str) -> str:
    """A name under which processes with other working directories find the same environment."""
    file, colon, attribute = name.partition(":")
    if not _names_file(name):
        return name
    return f"{os.path.abspath(file)}{colon}{attribute}"


def short_name(name: str) -> str:
    """A name to be shown: of code, that of what makes the environment, or of its file."""
    place, _, attribute = name.partition(":")
    if not names_code(name):
        return name
    return attribute or Path(place).stem


def names_code(name: str) -> bool:
    """Tell whether a name is one of a file or of something in a module."""
    return _names_file(name) or ":" in _without_target(name)


def describe_missing(name: str) -> str:
    """Say that there is no environment of a name here, and what to do; empty if there is one."""
    if _without_target(name) in _BUILT_IN:
        return ""
    try:
        find_factory(name)
    except EnvironmentNotFound as error:
        return str(error)
    except ValueError:  # it is here, and cannot be loaded, which another check reports
        return ""
    return ""


def find_factory(name: str) -> Callable[..., Environment]:
    """Find the callable that makes an environment of that name.

    Raises EnvironmentNotFound for an unknown name, and ValueError for code that cannot be loaded.
    """
    built_in = _without_target(name)
    if built_in in _BUILT_IN:
        module, _, attribute = _BUILT_IN[built_in].partition(":")
        return getattr(import_module(module), attribute)
    if _names_file(name):
        return _load(name, lambda: _find_in_file(name))
    if names_code(name):
        return _load(name, lambda: _find_in_module(name))
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _load(name, point.load)
    names = environment_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise EnvironmentNotFound(
        f"env.name: unknown environment {name!r}; known: {', '.join(names)}, one of your own as "
        f"./FILE.py:NAME or MODULE:NAME{hint}"
    )


def source_of_environment(name: str) -> bytes:
    """The source text of an environment of one's own; empty for ours, and where there is none."""
    if _without_target(name) in _BUILT_IN:
        return b""
    try:
        return Path(inspect.getfile(find_factory(name))).read_bytes()
    except (TypeError, OSError):
        return b""


def _without_target(name: str) -> str:
    """A name, without the target of an adapter."""
    adapter, _, _ = name.partition(":")
    if adapter in _ADAPTERS:
        return adapter
    return name


def _names_file(name: str) -> bool:
    return name.partition(":")[0].endswith(".py")


def _load(name: str, find: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Run what loads code of others. Raises ValueError that says why it fails, and where."""
    try:
        return find()
    except (KeyboardInterrupt, EnvironmentNotFound):
        raise
    except BaseException as error:
        raise ValueError(f"env.name: {name} cannot be loaded: {describe_error(error)}") from error


def _find_in_file(name: str) -> Callable[..., Any]:
    """Find in a file the name after the colon, or its one environment."""
    text, _, attribute = name.partition(":")
    file = Path(text).absolute()
    if not file.is_file():
        raise EnvironmentNotFound(
            f"env.name: there is no file {file} on {os.uname().nodename}; put it there, or install "
            "its package and write MODULE:NAME"
        )
    module = _import_file(file)
    if attribute:
        return _attribute_of(module, attribute, text)
    own = [
        value
        for value in vars(module).values()
        if _is_environment(value) and value.__module__ == module.__name__
    ]
    if len(own) == 1:
        return own[0]
    if own:
        names = ", ".join(value.__name__ for value in own)
        raise EnvironmentNotFound(
            f"env.name: {text} has several environments, {names}; say which: {text}:NAME"
        )
    lacks = [
        _describe_lack(value)
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    raise EnvironmentNotFound(
        f"env.name: {text} has no class with the methods {_WANTED}{''.join(lacks)}"
    )


def _describe_lack(value: object) -> str:
    """Say what keeps a class from being an environment; "" for one that is far from it."""
    if not inspect.isclass(value):
        return ""
    missing = min(
        ([name for name in names if not hasattr(value, name)] for names in _INTERFACES), key=len
    )
    if not missing or len(missing) > MOST_MISSING:
        return ""
    words = []
    for name in missing:
        near = difflib.get_close_matches(name, vars(value), n=1)
        words.append(f"{name} (is {near[0]} meant to be it?)" if near else name)
    return f"; the class {value.__name__} has no {' and no '.join(words)}"


def _import_file(file: Path) -> ModuleType:
    """Import a file, once; what is beside it can be imported, too, if nothing else has its name."""
    module_name = f"environment at {file}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _find_in_module(name: str) -> Callable[..., Any]:
    """Find in a module the name after the colon."""
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something else
        raise EnvironmentNotFound(
            f"env.name: there is no module {error.name} for Python on {os.uname().nodename}; "
            "install its package, put its folder on PYTHONPATH, or name its file: "
            f"./{module_name.replace('.', '/')}.py:{attribute}"
        ) from None
    return _attribute_of(module, attribute, module_name)


def _attribute_of(module: ModuleType, attribute: str, place: str) -> Callable[..., Any]:
    value = getattr(module, attribute, None)
    if not _is_environment(value):
        raise EnvironmentNotFound(
            f"env.name: {place} has no class {attribute!r} with the methods {_WANTED}"
            f"{_describe_lack(value)}"
        )
    return value


def _is_environment(value: object) -> TypeGuard[type]:
    """Tell whether something is the class of an environment, by what it has."""
    if not inspect.isclass(value):
        return False
    if all(callable(getattr(value, method, None)) for method in METHODS):
        return True
    return all(hasattr(value, name) for name in CONVERSATION_NAMES) or is_harness(value)
