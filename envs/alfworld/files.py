"""ALFWorld's own games, `json_2.1.1` as `alfworld-download` leaves it.

They are files SPLIT/TASK/TRIAL/game.tw-pddl, with TASK named like its type. The files' own rules
are older than those of alfworld 0.4.2, which plays them by its own, and so do we: of a game file
only the problem counts, and the task's sentence, which stands in its grammar. (`traj_data.json`
beside it is not read: it is large, and has nothing else that is needed.) Games that alfworld leaves
out are left out here, too: unsolvable ones, and those with things to be sliced or moved in other
things.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envs.alfworld.game import TASK_TYPES, Game, Goal, Item, Receptacle, TaskType, word_task
from envs.base import EnvironmentFailure

GAME_FILE = "game.tw-pddl"

_NO_TASK = "UNKNOWN GOAL"
"""The placeholder of the task in a grammar that no game was written for."""

_AFFORDANCES = {
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "sliceable",
    "toggleable",
    "isReceptacleObject",
}
_STATES = {"isClean", "isHot", "isCool", "isSliced", "isToggled"}
_TASK = re.compile(r"Your task is to: ([^\"\n]*?)\.?\s*\"")
_FACT = re.compile(r"\(\s*(\w+)((?:\s+[^\s()]+)+)\s*\)")


def find_games(folder: Path, task_types: Collection[TaskType] = TASK_TYPES) -> list[Path]:
    """The files of the playable games below `folder`, in a random order, the same everywhere.

    ValueError for a folder that is not there or has none, and, naming file and field, for a
    malformed file.
    """
    if not folder.is_dir():
        raise ValueError(f"env.settings.data (or ALFWORLD_DATA): there is no directory {folder}")
    files = [
        file
        for file in sorted(folder.glob(f"*/*/{GAME_FILE}"))
        if task_type_of(file) in task_types and _is_solvable(file)
    ]
    if not files:
        raise ValueError(
            f"env.settings.data (or ALFWORLD_DATA): {folder} has no games of the types "
            f"{', '.join(task_types)}"
        )
    random.Random("alfworld files").shuffle(files)
    return files


def task_type_of(file: Path) -> TaskType | None:
    """The type of a game's task, by the name of its directory; None if it is not played."""
    task = file.parent.parent.name
    for task_type in TASK_TYPES:
        if task.startswith(f"{task_type}-") and "Sliced" not in task:
            return task_type
    return None


def read_problem(file: Path) -> str:
    """The PDDL text of a game. ValueError naming file and field."""
    return _field(_read(file), "pddl_problem", str, file)


def read_game(file: Path) -> Game:
    """The game in a file, in the file's own words for the task.

    A file without these words gets one of several wordings, always the same. EnvironmentFailure if
    the file makes no sense.
    """
    try:
        data = _read(file)
        problem = _field(data, "pddl_problem", str, file)
    except ValueError as error:
        raise EnvironmentFailure(str(error)) from None
    rng = random.Random("/".join(file.parent.parts[-2:]))
    task_type = task_type_of(file)
    if task_type is None:
        raise EnvironmentFailure(
            f"env.settings.data: {file}: its directory is named after no task that is played"
        )
    try:
        game = parse_problem(problem, task_type, rng)
    except (ValueError, LookupError, TypeError, StopIteration):
        raise EnvironmentFailure(
            f"env.settings.data: {file}: pddl_problem is no problem of ALFWorld's"
        ) from None
    task = _read_task(data.get("grammar"))
    if task:
        return replace(game, task=task)
    return game


def _read_task(grammar: object) -> str:
    """The task's sentence without its full stop; "" for a grammar that has none."""
    if not isinstance(grammar, str):
        return ""
    match = _TASK.search(grammar)
    if match is None or match[1] == _NO_TASK:
        return ""
    return match[1]


def parse_problem(problem: str, task_type: TaskType, rng: random.Random) -> Game:
    """A game from the text of its PDDL problem; `rng` draws the wording of the task.

    Anything else raises some error.
    """
    initial, goal_text = problem.split("(:init", 1)[1].split("(:goal", 1)
    facts = _InitialFacts.parse(initial)
    goal = _parse_goal(goal_text, task_type)
    return Game(
        task=word_task(goal, rng),
        goal=goal,
        receptacles=tuple(
            facts.build_receptacle(id, kind) for id, kind in facts.receptacles.items()
        ),
        items=tuple(facts.build_item(id, kind) for id, kind in facts.items.items()),
        start=facts.pairs["atLocation"][0][1],
        contains=facts.contains,
    )


@dataclass(frozen=True, slots=True)
class _InitialFacts:
    """The facts that hold at the start of a game.

    `receptacles` and `items`: id -> kind. `unary`: predicate -> ids for which it holds. `pairs`:
    predicate -> pairs of ids. `contains`: kind of receptacle -> kinds of items.
    """

    receptacles: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    unary: dict[str, set[str]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    contains: dict[str, set[str]] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> _InitialFacts:
        """The facts in the `:init` part of a problem."""
        facts = _InitialFacts()
        for predicate, arguments in _FACT.findall(text):
            facts.add(predicate, arguments.split())
        return facts

    def add(self, predicate: str, arguments: list[str]) -> None:
        """Add one fact; those of more than two arguments are not needed."""
        if predicate == "canContain":
            receptacle_kind, item_kind = (kind.removesuffix("Type") for kind in arguments)
            self.contains.setdefault(receptacle_kind, set()).add(item_kind)
        elif predicate == "receptacleType":
            id, kind = arguments
            self.receptacles[id.lower()] = kind.removesuffix("Type")
        elif predicate == "objectType":
            id, kind = arguments
            self.items[id.lower()] = kind.removesuffix("Type")
        elif len(arguments) == 1:
            self.unary.setdefault(predicate, set()).add(arguments[0].lower())
        elif len(arguments) == 2:
            first, second = arguments
            self.pairs.setdefault(predicate, []).append((first.lower(), second.lower()))

    def build_receptacle(self, id: str, kind: str) -> Receptacle:
        """The receptacle of this id, at the first location that there is for it."""
        location = next(iter(self._related("receptacleAtLocation", id)), None)
        return Receptacle(
            id, kind, location, self._holds("openable", id), self._holds("opened", id)
        )

    def build_item(self, id: str, kind: str) -> Item:
        """The item of this id."""
        containers = self.pairs.get("inReceptacleObject", ())
        return Item(
            id,
            kind,
            receptacles=self._related("inReceptacle", id),
            locations=self._related("objectAtLocation", id),
            affordances=frozenset(name for name in _AFFORDANCES if self._holds(name, id)),
            state=frozenset(name for name in _STATES if self._holds(name, id)),
            inside=tuple(inner for inner, outer in containers if outer == id),
        )

    def _holds(self, predicate: str, id: str) -> bool:
        return id in self.unary.get(predicate, ())

    def _related(self, predicate: str, id: str) -> tuple[str, ...]:
        return tuple(second for first, second in self.pairs.get(predicate, ()) if first == id)


def _search(pattern: str, text: str) -> str:
    """The first group of a pattern where it first occurs; ValueError if it does not."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"there is no {pattern}")
    return match[1]


def _parse_goal(text: str, task_type: TaskType) -> Goal:
    """The goal of a PDDL text, by the kinds of its variables."""
    kinds = dict(re.findall(r"objectType (\?\w+) (\w+)Type", text))
    if task_type == "look_at_obj_in_light":
        lamp = _search(r"isToggled (\?\w+)", text)
        target_kind = next(kind for variable, kind in kinds.items() if variable != lamp)
        return Goal(task_type, target_kind, lamp=kinds[lamp])
    target_kind = next(iter(kinds.values()))
    receptacle_kind = _search(r"receptacleType \?\w+ (\w+)Type", text)
    return Goal(task_type, target_kind, receptacle_kind)


def _is_solvable(file: Path) -> bool:
    """True for a game that was tried out with success; alfworld plays no others."""
    game = _read(file)
    _field(game, "pddl_problem", str, file)
    return game.get("solvable") is True


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"env.settings.data: {file} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"env.settings.data: {file} holds no JSON object")
    return data


def _field(data: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    if not isinstance(data.get(name), kind):
        raise ValueError(
            f"env.settings.data: {file}: the field {name!r} is missing or no {kind.__name__}"
        )
    return data[name]
