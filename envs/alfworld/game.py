"""A game: rooms, things, where they are at the start, and the goal. Plain data, in PDDL's terms.

The structure is that of alfworld's problems in general (a thing may lie in no receptacle, or be
cold from the start), not only of those that `generate` makes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

_TOKEN = {"-": "_minus_", "|": "_bar_", "+": "_plus_", ".": "_dot_", ",": "_comma_"}


def pddl_token(thor_id: str) -> str:
    """The PDDL name of an AI2-THOR id or of a position, lower-cased as PDDL readers do.

    `Mug|+00.10` -> `mug_bar__plus_00_dot_10`.
    """
    return re.sub(r"[-|+.,]", lambda match: _TOKEN[match[0]], thor_id).lower()


@dataclass(frozen=True, slots=True)
class Receptacle:
    """A place that one can go to. `location` None: it exists, but nobody gets there."""

    id: str
    kind: str
    location: str | None
    openable: bool
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A thing.

    `affordances`: names of the static predicates that hold for it (pickupable, cleanable, heatable,
    coolable, sliceable, toggleable, isReceptacleObject); `state`: those of the others that hold at
    the start (isClean, isHot, isCool, isSliced, isToggled). `inside`: ids of the things that lie in
    it for ever (a knife in a mug): the domain has no action that changes this.
    """

    id: str
    kind: str
    receptacles: tuple[str, ...]
    locations: tuple[str, ...]
    affordances: frozenset[str]
    state: frozenset[str] = frozenset()
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """The end of a game, in kinds of things, not ids.

    `target` is to end up in a `receptacle`, or, to be looked at, in hand where a `lamp` is that was
    used.
    """

    task_type: TaskType
    target: str
    receptacle: str = ""
    lamp: str = ""


@dataclass(frozen=True, slots=True)
class Game:
    """A game before its first turn.

    `task`: the instruction; `start`: the agent's first location; `contains`: the kinds of things
    that a kind of receptacle takes.
    """

    task: str
    goal: Goal
    receptacles: tuple[Receptacle, ...]
    items: tuple[Item, ...]
    start: str
    contains: Mapping[str, Collection[str]]


# The wording is alfworld's, so that agents trained there understand it.
_WORDINGS: dict[TaskType, tuple[str, str]] = {
    "pick_and_place_simple": (
        "put a {target} in {receptacle}",
        "put some {target} on {receptacle}",
    ),
    "look_at_obj_in_light": (
        "look at {target} under the {lamp}",
        "examine the {target} with the {lamp}",
    ),
    "pick_clean_then_place_in_recep": (
        "put a clean {target} in {receptacle}",
        "clean some {target} and put it in {receptacle}",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot {target} in {receptacle}",
        "heat some {target} and put it in {receptacle}",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool {target} in {receptacle}",
        "cool some {target} and put it in {receptacle}",
    ),
    "pick_two_obj_and_place": (
        "put two {target} in {receptacle}",
        "find two {target} and put them in {receptacle}",
    ),
}


def word_task(goal: Goal, rng: random.Random) -> str:
    """The instruction for a goal, in one of two wordings."""
    wording = rng.choice(_WORDINGS[goal.task_type])
    return wording.format(
        target=goal.target.lower(), receptacle=goal.receptacle.lower(), lamp=goal.lamp.lower()
    )


def name_entities(ids: Iterable[str]) -> dict[str, str]:
    """The name of each id in the game: its kind and a number, as `mug 1`.

    Numbers are in alfworld's order: the last id in order gets 1.
    """
    kinds = {id: _kind_name(id) for id in sorted(ids)}
    next_number = Counter(kinds.values())
    names = {}
    for id, kind in kinds.items():
        names[id] = f"{kind} {next_number[kind]}"
        next_number[kind] -= 1
    return names


def _kind_name(id: str) -> str:
    kind = id.split("_bar_", 1)[0]
    if "basin" in id:
        return kind + "basin"
    return kind
