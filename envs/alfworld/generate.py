"""Making games: a room, a goal that it allows, and things put where they may be, all drawn from one
random generator.

Every game can be won: the targets start in receptacles that allow them, never in one of the goal's
kind, and the room has what the task needs. `small` rooms are real rooms with most receptacles and
things left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from envs.alfworld.game import Game, Goal, Item, Receptacle, TaskType, pddl_token, word_task
from envs.alfworld.scenes import Facts, Place, Scene, load_facts, station_of, token
from envs.base import Split

SceneSize = Literal["small", "real"]

SMALL_PLACES = 6

_LAMP_STANDS = (
    "Desk",
    "SideTable",
    "Dresser",
    "Shelf",
    "CoffeeTable",
    "DiningTable",
    "Bed",
    "Sofa",
    "ArmChair",
)


def generate(split: Split, task_type: TaskType, size: SceneSize, rng: random.Random) -> Game:
    """A game in a random room of the split."""
    facts = load_facts()
    scene = rng.choice(facts.having(split, task_type))
    # First the kind of thing, then where to: or else things that fit everywhere would fill the
    # tasks.
    goals = scene.goals[task_type]
    target = rng.choice(sorted({goal.target for goal in goals}))
    goal = rng.choice([goal for goal in goals if goal.target == target])
    builder = _Builder(facts, scene, goal, rng)
    if size == "small":
        builder.furnish_small()
    else:
        builder.furnish_real()
    return builder.game()


@dataclass
class _Builder:
    """A game in the making."""

    facts: Facts
    scene: Scene
    goal: Goal
    rng: random.Random
    places: list[Place] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)

    def furnish_small(self) -> None:
        """About six receptacles at different locations, about one thing in each."""
        rng = self.rng
        goal = self.goal
        if goal.receptacle:
            self._keep(self._of_kind(goal.receptacle))
        station = station_of(goal.task_type)
        if station and station != goal.receptacle:
            self._keep(self._of_kind(station))
        homes = []
        for _ in range(self._targets()):
            # A home that is kept already only if no other is left, so that there is something to
            # search.
            candidates = self._homes(goal.target, self.scene.places)
            fresh = [place for place in candidates if self._free(place)]
            homes.append(
                rng.choice(fresh or [place for place in candidates if place in self.places])
            )
            self._keep([homes[-1]])
        stand = (
            self._lamp_stand(
                self.places + [place for place in self.scene.places if self._free(place)]
            )
            if goal.lamp
            else None
        )
        if stand is not None:
            self._keep([stand])
        while len(self.places) < SMALL_PLACES:
            free = [place for place in self.scene.places if self._free(place)]
            if not free:
                break
            # Half the time one of a random kind, or else cabinets and drawers would fill the rooms.
            kind = rng.choice(sorted({place.kind for place in free})) if rng.random() < 0.5 else ""
            self._keep([place for place in free if place.kind == kind] or free)
        for home in homes:
            self._put(goal.target, home)
        if stand is not None:
            self._put(goal.lamp, stand)
        for place in self.places:
            fitting = [
                thing
                for thing in self.scene.things
                if thing != goal.target and thing in self.facts.contains[place.kind]
            ]
            for _ in range(rng.choice((0, 1, 1, 2)) if fitting else 0):
                self._put(rng.choice(fitting), place)

    def furnish_real(self) -> None:
        """The whole room, with one to three of each kind of thing that is found in it."""
        rng = self.rng
        goal = self.goal
        self.places = list(self.scene.places)
        for _ in range(self._targets() + rng.randrange(3)):
            self._put(goal.target, rng.choice(self._homes(goal.target, self.places)))
        for thing in self.scene.things:
            homes = [
                place for place in self.places if thing in self.facts.contains.get(place.kind, ())
            ]
            if thing == goal.target or not homes:
                continue
            for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
                self._put(thing, rng.choice(homes))
        if goal.lamp:
            self._put(goal.lamp, self._lamp_stand(self.places))

    def game(self) -> Game:
        """What has been furnished, with an instruction and a start away from all receptacles."""
        goal = self.goal
        task = word_task(goal, self.rng)
        receptacles = tuple(
            Receptacle(p.id, p.kind, p.location, p.kind in self.facts.openable) for p in self.places
        )
        return Game(
            task,
            goal,
            receptacles,
            tuple(self.items.values()),
            pddl_token("loc|-40|-40|0|30"),
            self.facts.contains,
        )

    def _targets(self) -> int:
        return 2 if self.goal.task_type == "pick_two_obj_and_place" else 1

    def _free(self, place: Place) -> bool:
        """Whether a small room may still get this place.

        No more of the goal's kind: there one need not look.
        """
        return (
            place.kind in self.facts.contains
            and place.kind != self.goal.receptacle
            and all(place.location != kept.location for kept in self.places)
        )

    def _of_kind(self, kind: str) -> list[Place]:
        return [place for place in self.scene.places if place.kind == kind]

    def _keep(self, candidates: list[Place]) -> None:
        place = self.rng.choice(candidates)
        if place not in self.places:
            self.places.append(place)

    def _homes(self, thing: str, places: list[Place] | tuple[Place, ...]) -> list[Place]:
        """Where a target may start."""
        return [
            p
            for p in places
            if p.kind != self.goal.receptacle and thing in self.facts.contains.get(p.kind, ())
        ]

    def _lamp_stand(self, places: list[Place]) -> Place:
        return self.rng.choice([place for place in places if place.kind in _LAMP_STANDS] or places)

    def _put(self, kind: str, place: Place) -> None:
        """Add a thing near the middle of its receptacle; positions matter only in that ids differ
        and give an order."""
        while True:
            position = "|".join(token(axis + self.rng.uniform(-0.4, 0.4)) for axis in place.xyz)
            identity = pddl_token(f"{kind}|{position}")
            if identity not in self.items:
                break
        self.items[identity] = Item(
            identity, kind, (place.id,), (place.location,), self.facts.affordances[kind]
        )
