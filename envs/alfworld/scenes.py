"""The rooms of ALFWorld, and the places of things in them: `layouts.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from envs.alfworld.game import TASK_TYPES, Goal, TaskType, pddl_token
from envs.base import Split

AFFORDANCES = ("cleanable", "heatable", "coolable", "sliceable", "toggleable")

# Affordance that a task's target must have, and kind of the receptacle that treats it.
_STATION = {
    "pick_clean_then_place_in_recep": ("cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("coolable", "Fridge"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A receptacle of a room.

    `xyz` is in meters; `location` is the place to stand when using it, as a PDDL token.
    """

    id: str
    kind: str
    xyz: tuple[float, float, float]
    location: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A room: its receptacles, the kinds of things in it, and its possible goals by task type."""

    number: int
    room: str
    split: Split
    places: tuple[Place, ...]
    things: tuple[str, ...]
    goals: Mapping[TaskType, tuple[Goal, ...]]


@dataclass(frozen=True, slots=True)
class Facts:
    """All rooms, and tables of what goes with what.

    `contains`: kinds of things by kind of receptacle; `affordances`: predicates by kind of thing.
    """

    receptacle_kinds: tuple[str, ...]
    object_kinds: tuple[str, ...]
    openable: frozenset[str]
    contains: Mapping[str, frozenset[str]]
    affordances: Mapping[str, frozenset[str]]
    scenes: tuple[Scene, ...]

    def scenes_for(self, split: Split, task_type: TaskType) -> tuple[Scene, ...]:
        """The rooms of a split in which a task of this type is possible."""
        return tuple(
            scene for scene in self.scenes if scene.split == split and scene.goals.get(task_type)
        )


def station_kind(task_type: TaskType) -> str:
    """The kind of receptacle that cleans, heats or cools the target; "" if the task needs none."""
    return _STATION.get(task_type, ("", ""))[1]


def format_coordinate(number: float) -> str:
    """A coordinate as AI2-THOR writes it in ids."""
    return f"{number:+06.2f}"


@cache
def load_facts() -> Facts:
    """The facts in `layouts.json`, read once per process."""
    raw = json.loads(Path(__file__).with_name("layouts.json").read_text())
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
    affordances = [name for name in AFFORDANCES if kind in raw[name]]
    if kind in raw["movable_receptacles"]:
        affordances.append("isReceptacleObject")
    if kind not in raw["toggleable"]:  # Lamps stay where they are.
        affordances.append("pickupable")
    return affordances


def _scene(
    number: int,
    entry: Mapping[str, Any],
    raw: Mapping[str, Any],
    contains: Mapping[str, frozenset[str]],
    affordances: Mapping[str, frozenset[str]],
) -> Scene:
    kinds = set(entry["kinds"])
    places = [_read_place(thor_id, pose) for thor_id, pose in entry["receptacles"].items()]
    placed_kinds = {place.kind for place in places}
    places += _invent_places((kinds & set(raw["receptacle_kinds"])) - placed_kinds)
    things = tuple(sorted({t for kind in contains for t in contains[kind]} & kinds))
    lamps = sorted(set(raw["toggleable"]) & kinds)
    receptacle_kinds = {place.kind for place in places}
    goals: dict[TaskType, tuple[Goal, ...]] = {
        task: tuple(_goals(task, receptacle_kinds, things, lamps, contains, affordances))
        for task in TASK_TYPES
        if entry["room"] in raw["rooms_of_task"][task]
    }
    return Scene(number, entry["room"], entry["split"], tuple(places), things, goals)


def _read_place(thor_id: str, pose: tuple[float, float, float, int]) -> Place:
    """The receptacle of an AI2-THOR id, and the pose (x, z, rotation, horizon) to use it from."""
    name, *position = thor_id.split("|")
    kind = name
    # Sink|x|y|z|SinkBasin; but one room has a Bathtub|x|y|z|SinkBasin, which the game calls a
    # bathtubbasin.
    if len(position) == 4:
        kind = f"{name}Basin"
    xyz = (float(position[0]), float(position[1]), float(position[2]))
    x, z, rotation, horizon = pose
    location = f"loc|{round(x / 0.25)}|{round(z / 0.25)}|{round(rotation / 90)}|{horizon}"
    return Place(pddl_token(thor_id), kind, xyz, pddl_token(location))


def _invent_places(kinds: set[str]) -> list[Place]:
    """Receptacles of a room for which alfworld lists no position (stove burners, toasters, …).

    They get made-up positions, on a line outside the room, each with a location of its own.
    """
    places: list[Place] = []
    for kind in sorted(kinds):
        count = 1
        if kind == "StoveBurner":
            count = 4
        for _ in range(count):
            xyz = (9.0 + 0.25 * len(places), 0.9, 9.0)
            position = "|".join(map(format_coordinate, xyz))
            thor_id = f"{kind.removesuffix('Basin')}|{position}"
            # Sink|x|y|z|SinkBasin: alfworld's names for things depend on it.
            if kind.endswith("Basin"):
                thor_id += "|" + kind
            location = f"loc|{round(xyz[0] / 0.25)}|36|0|30"
            places.append(Place(pddl_token(thor_id), kind, xyz, pddl_token(location)))
    return places


def _goals(
    task: TaskType,
    kinds: set[str],
    things: tuple[str, ...],
    lamps: list[str],
    contains: Mapping[str, frozenset[str]],
    affordances: Mapping[str, frozenset[str]],
) -> list[Goal]:
    """All possible goals of a task type.

    They can be reached from a start in which no target is in a receptacle of the goal's kind.
    """
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
