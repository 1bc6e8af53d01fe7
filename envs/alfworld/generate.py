"""Random games: a room, a goal that it allows, and things put where they may be.

All is drawn from one random generator. Every game can be won: the targets start in receptacles
that allow them, never in one of the goal's kind, and the room has everything that the task needs.
`small` rooms are real rooms with most receptacles and things left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from envs.alfworld.game import Game, Goal, Item, Receptacle, TaskType, pddl_token, word_task
from envs.alfworld.scenes import (
    Facts,
    Place,
    Scene,
    format_coordinate,
    load_facts,
    station_kind,
)
from envs.base import Split

SceneSize = Literal["small", "real"]

SMALL_PLACES = 6

_STANDS = "Desk SideTable Dresser Shelf CoffeeTable DiningTable Bed Sofa ArmChair"
_LAMP_STANDS = tuple(_STANDS.split())


def generate_game(split: Split, task_type: TaskType, size: SceneSize, rng: random.Random) -> Game:
    """A game in a random room of the split."""
    facts = load_facts()
    scene = rng.choice(facts.scenes_for(split, task_type))
    # First the kind of thing, then its destination: or else things that fit everywhere would fill
    # the tasks.
    goals = scene.goals[task_type]
    target = rng.choice(sorted({goal.target for goal in goals}))
    goal = rng.choice([goal for goal in goals if goal.target == target])
    builder = _Builder(facts, scene, goal, rng)
    if size == "small":
        builder.furnish_small()
    else:
        builder.furnish_real()
    return builder.build()


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
        station = station_kind(goal.task_type)
        if station and station != goal.receptacle:
            self._keep(self._of_kind(station))
        homes = [self._keep_home() for _ in range(self._target_count())]
        stands = []
        if goal.lamp:
            stands.append(self._draw_lamp_stand([*self.places, *self._free_places()]))
            self._keep(stands)
        self._fill_up()
        for home in homes:
            self._put(goal.target, home)
        for stand in stands:
            self._put(goal.lamp, stand)
        for place in self.places:
            fitting = [
                thing
                for thing in self.scene.things
                if thing != goal.target and thing in self.facts.contains[place.kind]
            ]
            if fitting:
                for _ in range(rng.choice((0, 1, 1, 2))):
                    self._put(rng.choice(fitting), place)

    def _keep_home(self) -> Place:
        """Keep a place where a target may start.

        It is one that is kept already only if there is no other, so that there is something to
        search.
        """
        candidates = self._homes(self.goal.target, self.scene.places)
        fresh = [place for place in candidates if self._is_free(place)]
        kept = [place for place in candidates if place in self.places]
        home = self.rng.choice(fresh or kept)
        self._keep([home])
        return home

    def _fill_up(self) -> None:
        """Keep further places, up to `SMALL_PLACES`."""
        while len(self.places) < SMALL_PLACES:
            free = self._free_places()
            if not free:
                return
            candidates = free
            # Half the time one of a random kind, or else cabinets and drawers would fill the rooms.
            if self.rng.random() < 0.5:
                kind = self.rng.choice(sorted({place.kind for place in free}))
                candidates = [place for place in free if place.kind == kind]
            self._keep(candidates)

    def furnish_real(self) -> None:
        """The whole room, with one to three of each kind of thing that is found in it."""
        rng = self.rng
        goal = self.goal
        self.places = list(self.scene.places)
        for _ in range(self._target_count() + rng.randrange(3)):
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
            self._put(goal.lamp, self._draw_lamp_stand(self.places))

    def build(self) -> Game:
        """The game in the furnished room, which starts away from all receptacles."""
        goal = self.goal
        task = word_task(goal, self.rng)
        receptacles = tuple(
            Receptacle(p.id, p.kind, p.location, p.kind in self.facts.openable) for p in self.places
        )
        return Game(
            task,
            goal,
            receptacles,
            items=tuple(self.items.values()),
            start=pddl_token("loc|-40|-40|0|30"),
            contains=self.facts.contains,
        )

    def _target_count(self) -> int:
        if self.goal.task_type == "pick_two_obj_and_place":
            return 2
        return 1

    def _free_places(self) -> list[Place]:
        return [place for place in self.scene.places if self._is_free(place)]

    def _is_free(self, place: Place) -> bool:
        """True if a small room may still get this place.

        It gets no more of the goal's kind: there one need not look.
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
        """The places where a target may start."""
        return [
            place
            for place in places
            if place.kind != self.goal.receptacle
            and thing in self.facts.contains.get(place.kind, ())
        ]

    def _draw_lamp_stand(self, places: list[Place]) -> Place:
        return self.rng.choice([place for place in places if place.kind in _LAMP_STANDS] or places)

    def _put(self, kind: str, place: Place) -> None:
        """Add a thing near the middle of its receptacle.

        Positions matter only in that ids differ and give an order.
        """
        while True:
            coordinates = [axis + self.rng.uniform(-0.4, 0.4) for axis in place.xyz]
            position = "|".join(map(format_coordinate, coordinates))
            id = pddl_token(f"{kind}|{position}")
            if id not in self.items:
                break
        affordances = self.facts.affordances[kind]
        self.items[id] = Item(id, kind, (place.id,), (place.location,), affordances)
