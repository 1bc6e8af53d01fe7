"""The rooms of ALFWorld, and what fits where: `layouts.json`, read once per process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from envs.alfworld.game import TASK_TYPES, Goal, TaskType, pddl_token
from envs.base import Split

AFFORDANCES = ("cleanable", "heatable", "coolable", "sliceable", "toggleable")

# Where a task's station must be, and what its target must allow.
_STATION = {
    "pick_clean_then_place_in_recep": ("cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("coolable", "Fridge"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A receptacle of a room.

    `xyz` in metres; `location`: where an agent stands to use it, as a PDDL token.
    """

    id: str
    kind: str
    xyz: tuple[float, float, float]
    location: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A room: its receptacles, the kinds of things found in it, and the goals it allows, by task
    type."""

    number: int
    room: str
    split: Split
    places: tuple[Place, ...]
    things: tuple[str, ...]
    goals: Mapping[TaskType, tuple[Goal, ...]]


@dataclass(frozen=True, slots=True)
class Facts:
    """Rooms and tables.

    `contains`: kinds of things by kind of receptacle; `affordances`: predicates by kind of thing.
    """

    receptacle_kinds: tuple[str, ...]
    object_kinds: tuple[str, ...]
    openable: frozenset[str]
    contains: Mapping[str, frozenset[str]]
    affordances: Mapping[str, frozenset[str]]
    scenes: tuple[Scene, ...]

    def having(self, split: Split, task_type: TaskType) -> tuple[Scene, ...]:
        """The rooms of a split in which a task of this type is possible."""
        return tuple(
            scene for scene in self.scenes if scene.split == split and scene.goals.get(task_type)
        )


def station_of(task_type: TaskType) -> str:
    """The kind of receptacle that cleans, heats or cools the target; "" if the task needs none."""
    return _STATION.get(task_type, ("", ""))[1]


def token(number: float) -> str:
    """A coordinate as AI2-THOR writes it in ids."""
    return f"{number:+06.2f}"


@cache
def load_facts() -> Facts:
    """Read `layouts.json`."""
    raw = json.loads(files(__package__).joinpath("layouts.json").read_text())
    contains = {kind: frozenset(things) for kind, things in raw["contains"].items()}
    kinds = (
        set(raw["object_kinds"])
        | {thing for things in contains.values() for thing in things}
        | set(raw["toggleable"])
    )
    affordances = {kind: frozenset(_affordances(kind, raw)) for kind in kinds}
    scenes = tuple(
        _scene(int(number), entry, raw, contains, affordances)
        for number, entry in raw["scenes"].items()
    )
    return Facts(
        tuple(raw["receptacle_kinds"]),
        tuple(sorted(kinds)),
        frozenset(raw["openable"]),
        contains,
        affordances,
        scenes,
    )


def _affordances(kind: str, raw: Mapping[str, Any]) -> list[str]:
    found = [name for name in AFFORDANCES if kind in raw[name]]
    if kind in raw["movable_receptacles"]:
        found.append("isReceptacleObject")
    if kind not in raw["toggleable"]:  # Lamps stay where they are.
        found.append("pickupable")
    return found


def _scene(
    number: int,
    entry: Mapping[str, Any],
    raw: Mapping[str, Any],
    contains: Mapping[str, frozenset[str]],
    affordances: Mapping[str, frozenset[str]],
) -> Scene:
    places = []
    for thor_id, (x, z, rotation, horizon) in entry["receptacles"].items():
        parts = thor_id.split("|")
        # Sink|x|y|z|SinkBasin; but one room has a Bathtub|x|y|z|SinkBasin, which the game calls a
        # bathtubbasin.
        kind = f"{parts[0]}Basin" if len(parts) == 5 else parts[0]
        stand = f"loc|{round(x / 0.25)}|{round(z / 0.25)}|{round(rotation / 90)}|{horizon}"
        places.append(
            Place(
                pddl_token(thor_id),
                kind,
                (float(parts[1]), float(parts[2]), float(parts[3])),
                pddl_token(stand),
            )
        )
    places += _without_layout(
        set(entry["kinds"]) & set(raw["receptacle_kinds"]) - {place.kind for place in places}
    )
    things = tuple(sorted({t for kind in contains for t in contains[kind]} & set(entry["kinds"])))
    lamps = sorted(set(raw["toggleable"]) & set(entry["kinds"]))
    goals = {
        task: tuple(
            _goals(task, {place.kind for place in places}, things, lamps, contains, affordances)
        )
        for task in TASK_TYPES
        if entry["room"] in raw["rooms_of_task"][task]
    }
    return Scene(number, entry["room"], entry["split"], tuple(places), things, goals)


def _without_layout(kinds: set[str]) -> list[Place]:
    """Receptacles that the room has, but alfworld lists no position for (stove burners, toasters,
    …).

    They get made-up positions, on a line outside the room, each with a location of its own.
    """
    places: list[Place] = []
    for kind in sorted(kinds):
        for _ in range(4 if kind == "StoveBurner" else 1):
            x = 9.0 + 0.25 * len(places)
            thor_id = "|".join((kind.removesuffix("Basin"), token(x), token(0.9), token(9.0)))
            if kind.endswith(
                "Basin"
            ):  # Sink|x|y|z|SinkBasin: alfworld's names for things depend on it.
                thor_id += "|" + kind
            places.append(
                Place(
                    pddl_token(thor_id),
                    kind,
                    (x, 0.9, 9.0),
                    pddl_token(f"loc|{round(x / 0.25)}|36|0|30"),
                )
            )
    return places


def _goals(
    task: TaskType,
    kinds: set[str],
    things: tuple[str, ...],
    lamps: list[str],
    contains: Mapping[str, frozenset[str]],
    affordances: Mapping[str, frozenset[str]],
) -> list[Goal]:
    """All goals of a task type that can be reached from a start in which no target is in a
    receptacle of the goal's kind."""
    affordance, station = _STATION.get(task, ("", ""))
    if station and station not in kinds:
        return []
    goals = []
    for thing in things:
        homes = sorted(kind for kind in kinds if thing in contains.get(kind, ()))
        if affordance and affordance not in affordances[thing]:
            continue
        if task == "look_at_obj_in_light":
            goals += [Goal(task, thing, lamp=lamp) for lamp in lamps if homes]
        elif len(homes) > 1:
            goals += [Goal(task, thing, receptacle=home) for home in homes]
    return goals
