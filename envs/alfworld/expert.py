"""A demonstrator that knows what the prompt shows: nothing of the game's hidden state.

An informed one also knows where things are kept, and looks there first. The other one looks through
a room in the order in which its places are listed: it shows how the game is played, and leaves
where to look to reinforcement learning.

An agent that reads the prompt with memory "contents" can therefore learn to do the same. It also
finishes games that somebody else began, so it can be asked at any turn.
"""

from __future__ import annotations

import random
import re

from envs.alfworld.memory import Transcript
from envs.alfworld.scenes import load_facts
from envs.alfworld.thoughts import word
from envs.view import AgentView

_TASKS = (
    (re.compile(r"(?:look at|examine the) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)"), ""),
    (re.compile(r"(?:put two|find two) (?P<target>\w+) (?:in|and put them in) (?P<goal>\w+)"), ""),
    (
        re.compile(
            r"(?:put a clean|clean some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)"
        ),
        "clean",
    ),
    (
        re.compile(r"(?:put a hot|heat some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)"),
        "heat",
    ),
    (
        re.compile(r"(?:put a cool|cool some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)"),
        "cool",
    ),
    (re.compile(r"(?:put a|put some) (?P<target>\w+) (?:in|on) (?P<goal>\w+)"), ""),
)
_NAMES_PLACE = re.compile(r"(?:examine|go to) (.*)")
_STATE = {"clean": "clean", "heat": "hot", "cool": "cool"}
_STATION = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}

# How often the next place to search is any one instead of the first: enough to vary, too little to
# confuse.
_STRAY = 0.1


def kind_of(name: str) -> str:
    """`mug` of `mug 1`."""
    return name.rsplit(" ", 1)[0]


class AlfWorldExpert:
    """Plays one episode.

    Each turn is decided anew from the view; only the wording and rare detours are random.
    """

    def __init__(self, task: str, rng: random.Random, informed: bool) -> None:
        found, self._verb = next(
            ((m, verb) for pattern, verb in _TASKS if (m := pattern.fullmatch(task))), (None, "")
        )
        if found is None:
            raise ValueError(f"the expert does not understand the task {task!r}")
        parts = found.groupdict()
        self._target: str = parts["target"]
        self._lamp: str = parts.get("lamp", "")
        self._goal: str = parts.get("goal", "")
        self._two = " two " in task
        self._rng = rng
        self._informed = informed
        facts = load_facts()
        self._openable = {kind.lower() for kind in facts.openable}
        self._receptacles = {kind.lower() for kind in facts.receptacle_kinds}
        self._contains = {
            kind.lower(): {thing.lower() for thing in things}
            for kind, things in facts.contains.items()
        }

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action) for the current turn.

        The view must have ALFWorld's memory, as `Environment.view` makes it.
        """
        if not isinstance(view.memory, Transcript):
            raise TypeError(
                "the expert reads a view with a Transcript; make it with environment.view(episode)"
            )
        turn = _Turn(view, view.memory, self._receptacles)
        held = turn.memory.carrying
        if not held:
            return self._fetch(turn)
        if kind_of(held) != self._target:
            return self._drop(turn, held)
        if self._lamp:
            return self._light(turn, held)
        if self._verb and _STATE[self._verb] not in turn.memory.treated.get(held, ()):
            return self._treat(turn, held)
        return self._deliver(turn, held)

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """Look around, or at what is known already: what beginners waste their turns on."""
        admissible = view.observation.admissible
        examine = [action for action in admissible if action.startswith("examine ")]
        action = self._rng.choice(
            ("look", "inventory", self._rng.choice(examine) if examine else "look")
        )
        if action in ("look", "inventory"):
            return self._say(action, action)
        return self._say("examine", action, thing=action.removeprefix("examine "))

    # Sub-goals

    def _fetch(self, turn: _Turn) -> tuple[str, str]:
        """Get a target into the hand: one that has been seen, or search."""
        placed = self._destination(turn) if self._two else ""
        known = [
            (thing, place)
            for place, things in turn.memory.contents.items()
            if place != placed
            for thing in things or ()
            if kind_of(thing) == self._target
        ]
        for thing, place in known:
            if turn.can(take := f"take {thing} from {place}"):
                return self._say("take", take, thing=thing, place=place)
        for thing, place in known:
            if turn.can(reopen := f"open {place}"):
                return self._say("reopen_for", reopen, thing=thing, place=place)
            if turn.can(go := f"go to {place}"):
                return self._say("return_for", go, thing=thing, place=place)
        done = any(
            kind_of(thing) == self._target for thing in turn.memory.contents.get(placed) or ()
        )
        return self._search(turn, self._target, "search_second" if done else "")

    def _treat(self, turn: _Turn, held: str) -> tuple[str, str]:
        stations = turn.places(_STATION[self._verb])
        for station in stations:
            if turn.can(treat := f"{self._verb} {held} with {station}"):
                return self._say("treat", treat, thing=held, place=station, other=self._verb)
        return self._say(
            "to_station", f"go to {stations[0]}", thing=held, place=stations[0], other=self._verb
        )

    def _deliver(self, turn: _Turn, held: str) -> tuple[str, str]:
        goal = self._destination(turn)
        if turn.can(put := f"move {held} to {goal}"):
            first = self._two and not any(
                kind_of(thing) == self._target for thing in turn.memory.contents.get(goal) or ()
            )
            return self._say("put_first" if first else "put", put, thing=held, place=goal)
        if turn.can(reopen := f"open {goal}"):
            return self._say("open_goal", reopen, thing=held, place=goal)
        situation = "to_goal_treated" if self._verb else "to_goal"
        return self._say(
            situation, f"go to {goal}", thing=held, place=goal, other=_STATE.get(self._verb, "")
        )

    def _light(self, turn: _Turn, held: str) -> tuple[str, str]:
        for place, things in turn.memory.contents.items():
            for lamp in things or ():
                if kind_of(lamp) == self._lamp:
                    if turn.can(use := f"use {lamp}"):
                        return self._say("use_lamp", use, thing=held, other=lamp)
                    return self._say(
                        "to_lamp", f"go to {place}", thing=held, other=lamp, place=place
                    )
        return self._search(turn, self._lamp, "search_lamp", other=held)

    def _drop(self, turn: _Turn, held: str) -> tuple[str, str]:
        """Free the hand of something that is not needed."""
        # Real games have things where nothing of their kind can be put back (a teddy bear on a
        # sofa): then the table is no help.
        for place in turn.places():
            if turn.can(put := f"move {held} to {place}"):
                return self._say("drop", put, thing=held, place=place)
        fitting = [
            place
            for place in turn.places()
            if kind_of(held) in self._contains.get(kind_of(place), ())
        ]
        for place in fitting:
            if turn.can(reopen := f"open {place}"):
                return self._say("open_to_drop", reopen, thing=held, place=place)
        if not fitting:
            return self._wander(turn, "no_place", thing=held)
        place = min(fitting, key=lambda place: kind_of(place) in self._openable)
        return self._say("drop_at", f"go to {place}", thing=held, place=place)

    # Where to

    def _destination(self, turn: _Turn) -> str:
        """The receptacle to fill: the one with most targets in it, else one that is at hand, else
        the first."""

        def preference(place: str) -> tuple[int, bool]:
            targets = sum(
                kind_of(thing) == self._target for thing in turn.memory.contents.get(place) or ()
            )
            return -targets, turn.can(f"go to {place}")

        return min(turn.places(self._goal), key=preference)

    def _search(self, turn: _Turn, kind: str, situation: str, **fields: str) -> tuple[str, str]:
        """Look where nobody has looked: what is at hand first, then in listed order; if informed,
        likely and open places before others."""
        memory = turn.memory
        unsearched = memory.unsearched
        if not unsearched:
            return self._wander(turn, "lost", thing=kind)
        for place in unsearched:
            if turn.can(look_in := f"open {place}"):
                return self._say("search_open", look_in, thing=kind, place=place)
        if self._informed:
            unsearched.sort(
                key=lambda place: (not self._likely(kind, place), kind_of(place) in self._openable)
            )
        for place in unsearched:
            if not turn.can(f"go to {place}"):
                return self._say("search_here", f"examine {place}", thing=kind, place=place)
        place = self._rng.choice(unsearched) if self._rng.random() < _STRAY else unsearched[0]
        if not situation:
            arrived = memory.contents.get(memory.place) is not None
            situation = (
                "search_next" if arrived else "search_on" if memory.place else "search_first"
            )
        return self._say(
            situation, f"go to {place}", thing=kind, place=place, here=memory.place, **fields
        )

    def _wander(self, turn: _Turn, situation: str, **fields: str) -> tuple[str, str]:
        """Go to any place, for want of a better one; look around where there is no other."""
        places = [place for place in turn.places() if turn.can(f"go to {place}")]
        if not places:
            return self._say("look", "look")
        place = self._rng.choice(places)
        return self._say(situation, f"go to {place}", place=place, **fields)

    def _likely(self, kind: str, place: str) -> bool:
        """Whether things of this kind are kept there.

        Of a target, only outside the goal's kind: there it would be done.
        """
        where = kind_of(place)
        if kind == self._lamp:
            return where not in self._openable
        return where != self._goal and kind in self._contains.get(where, ())

    def _say(self, situation: str, action: str, **fields: str) -> tuple[str, str]:
        return word(situation, self._rng, **fields), action


class _Turn:
    """What is shown at one turn."""

    def __init__(self, view: AgentView, memory: Transcript, receptacles: set[str]) -> None:
        self.memory = memory
        self._admissible = set(view.observation.admissible)
        named = [
            found[1]
            for action in view.observation.admissible
            if (found := _NAMES_PLACE.fullmatch(action))
        ]
        self._places = sorted(place for place in named if kind_of(place) in receptacles)

    def can(self, action: str) -> bool:
        return action in self._admissible

    def places(self, kind: str = "") -> list[str]:
        """All receptacles of the room, or those of a kind: one can go to them, or, where one is,
        examine them."""
        return [place for place in self._places if not kind or kind_of(place) == kind]
