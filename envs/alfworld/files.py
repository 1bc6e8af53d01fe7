"""ALFWorld's own games, `json_2.1.1` as `alfworld-download` leaves it:
SPLIT/TASK/TRIAL/game.tw-pddl, TASK named like its type.

The files' own rules are older than those of alfworld 0.4.2, which plays them by its own, and so do
we: of a game file only the problem counts, and the task's sentence, which stands in its grammar.
(`traj_data.json` beside it is not read: it is large, and has nothing else that is needed.) Left out
is what alfworld leaves out: unsolvable games, things to be sliced or moved in other things.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.alfworld.game import TASK_TYPES, Game, Goal, Item, Receptacle, TaskType, word_task
from envs.base import EnvironmentFailure

GAME_FILE = "game.tw-pddl"

_NO_TASK = "UNKNOWN GOAL"
"""What stands in the place of the task in a grammar that no game was written for."""

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
    """The files of the playable games below `folder`, in a random order that is the same
    everywhere.

    Raises ValueError for a folder that is not there or has none, and naming file and field for a
    malformed file.
    """
    if not folder.is_dir():
        raise ValueError(f"alfworld.data (or ALFWORLD_DATA): there is no directory {folder}")
    found = [
        file
        for file in sorted(folder.glob(f"*/*/{GAME_FILE}"))
        if task_type_of(file) in task_types and _solvable(file)
    ]
    if not found:
        raise ValueError(
            f"alfworld.data (or ALFWORLD_DATA): {folder} has no games of the types "
            f"{', '.join(task_types)}"
        )
    random.Random("alfworld files").shuffle(found)
    return found


def task_type_of(file: Path) -> TaskType | None:
    """That of a game, by the name of its directory; None for those that are not played."""
    task = file.parent.parent.name
    return next(
        (known for known in TASK_TYPES if task.startswith(f"{known}-") and "Sliced" not in task),
        None,
    )


def read_problem(file: Path) -> str:
    """The PDDL text of a game. ValueError naming file and field."""
    return _field(_read(file), "pddl_problem", str, file)


def read_game(file: Path) -> Game:
    """The game in a file, in the file's own words for the task.

    EnvironmentFailure if it makes no sense.

    A file without these words gets one of several wordings, always the same.
    """
    try:
        data = _read(file)
        problem = _field(data, "pddl_problem", str, file)
    except ValueError as error:
        raise EnvironmentFailure(str(error)) from None
    try:
        game = parse_problem(
            problem, task_type_of(file), random.Random("/".join(file.parent.parts[-2:]))
        )
    except (ValueError, LookupError, TypeError, StopIteration):
        raise EnvironmentFailure(
            f"alfworld.data: {file}: pddl_problem is no problem of ALFWorld's"
        ) from None
    task = _read_task(data.get("grammar"))
    return replace(game, task=task) if task else game


def _read_task(grammar: object) -> str:
    """The task's sentence without its full stop; "" for a grammar that has none."""
    found = _TASK.search(grammar) if isinstance(grammar, str) else None
    if found is None or found[1] == _NO_TASK:
        return ""
    return found[1]


def parse_problem(problem: str, task_type: TaskType, rng: random.Random) -> Game:
    """A game from the text of its PDDL problem; `rng` draws the wording of the task.

    Some error for anything else.
    """
    initial, goal_text = problem.split("(:init", 1)[1].split("(:goal", 1)
    facts = list(_facts(initial))
    kinds = {
        name: dict(args for predicate, args in facts if predicate == name)
        for name in ("receptacleType", "objectType")
    }
    receptacles = {
        id.lower(): kind.removesuffix("Type") for id, kind in kinds["receptacleType"].items()
    }
    things = {id.lower(): kind.removesuffix("Type") for id, kind in kinds["objectType"].items()}

    single: dict[str, set[str]] = {}  # predicate -> what it holds for
    pairs: dict[str, list[tuple[str, str]]] = {}
    contains: dict[str, set[str]] = {}
    for predicate, args in facts:
        if predicate == "canContain":
            contains.setdefault(args[0].removesuffix("Type"), set()).add(
                args[1].removesuffix("Type")
            )
        elif len(args) == 1:
            single.setdefault(predicate, set()).add(args[0].lower())
        elif len(args) == 2:
            pairs.setdefault(predicate, []).append((args[0].lower(), args[1].lower()))

    def holds(predicate: str, id: str) -> bool:
        return id in single.get(predicate, ())

    def of(predicate: str, id: str) -> tuple[str, ...]:
        return tuple(second for first, second in pairs.get(predicate, ()) if first == id)

    goal = _goal(goal_text, task_type)
    return Game(
        task=word_task(goal, rng),
        goal=goal,
        receptacles=tuple(
            Receptacle(
                id,
                kind,
                next(iter(of("receptacleAtLocation", id)), None),
                holds("openable", id),
                holds("opened", id),
            )
            for id, kind in receptacles.items()
        ),
        items=tuple(
            Item(
                id,
                kind,
                of("inReceptacle", id),
                of("objectAtLocation", id),
                frozenset(name for name in _AFFORDANCES if holds(name, id)),
                frozenset(name for name in _STATES if holds(name, id)),
                tuple(inner for inner, outer in pairs.get("inReceptacleObject", ()) if outer == id),
            )
            for id, kind in things.items()
        ),
        start=pairs["atLocation"][0][1],
        contains=contains,
    )


def _goal(text: str, task_type: TaskType) -> Goal:
    """What the PDDL goal asks for: the kinds of its variables."""
    kinds = dict(re.findall(r"objectType (\?\w+) (\w+)Type", text))
    if task_type == "look_at_obj_in_light":
        lamp = re.search(r"isToggled (\?\w+)", text)[1]
        return Goal(
            task_type,
            next(kind for variable, kind in kinds.items() if variable != lamp),
            lamp=kinds[lamp],
        )
    return Goal(
        task_type, next(iter(kinds.values())), re.search(r"receptacleType \?\w+ (\w+)Type", text)[1]
    )


def _facts(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for predicate, args in _FACT.findall(text):
        yield predicate, tuple(args.split())


def _solvable(file: Path) -> bool:
    """A game that was never tried out does not say so, and alfworld does not play it."""
    game = _read(file)
    _field(game, "pddl_problem", str, file)
    return game.get("solvable") is True


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"alfworld.data: {file} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"alfworld.data: {file} holds no JSON object")
    return data


def _field(data: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    if not isinstance(data.get(name), kind):
        raise ValueError(
            f"alfworld.data: {file}: the field {name!r} is missing or no {kind.__name__}"
        )
    return data[name]
