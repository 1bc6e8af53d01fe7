"""A demonstrator that knows what the prompt shows, and nothing of the game's hidden state.

An informed one also knows where things are kept, and looks there first. The other one looks through
a room in the order in which its places are listed: it shows how the game is played, and leaves the
places to look at first to reinforcement learning.

An agent that reads the prompt with memory "contents" can therefore learn to do the same. It also
finishes games that somebody else began, so it can be asked at any turn.
"""

from __future__ import annotations

import random
import re

from envs.alfworld.memory import TranscriptMemory
from envs.alfworld.scenes import load_facts
from envs.alfworld.thoughts import word_thought
from envs.view import AgentView

_TASKS = tuple(
    (re.compile(pattern), verb)
    for pattern, verb in (
        (r"(?:look at|examine the) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)", ""),
        (r"(?:put two|find two) (?P<target>\w+) (?:in|and put them in) (?P<goal>\w+)", ""),
        (r"(?:put a clean|clean some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)", "clean"),
        (r"(?:put a hot|heat some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)", "heat"),
        (r"(?:put a cool|cool some) (?P<target>\w+) (?:in|and put it in) (?P<goal>\w+)", "cool"),
        (r"(?:put a|put some) (?P<target>\w+) (?:in|on) (?P<goal>\w+)", ""),
    )
)
"""Forms of tasks, each with the verb of its treatment."""
_NAMES_PLACE = re.compile(r"(?:examine|go to) (.*)")
_STATE = {"clean": "clean", "heat": "hot", "cool": "cool"}
_STATION = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}

_STRAY = 0.1
"""Probability that the next place to search is any one instead of the first.

It is enough to vary, and too little to confuse.
"""


def kind_of(name: str) -> str:
    """`mug` of `mug 1`."""
    return name.rsplit(" ", 1)[0]


def _read_task(task: str) -> tuple[dict[str, str], str]:
    """(kinds of target, goal and lamp by these names, verb of the treatment) of an instruction.

    ValueError for one that is none of ALFWorld's.
    """
    for pattern, verb in _TASKS:
        match = pattern.fullmatch(task)
        if match is not None:
            return match.groupdict(), verb
    raise ValueError(f"the expert does not understand the task {task!r}")


class AlfWorldExpert:
    """Plays one episode.

    Each turn is decided anew from the view; only the wording and rare detours are random.
    """

    def __init__(self, task: str, rng: random.Random, informed: bool) -> None:
        kinds, self._verb = _read_task(task)
        self._target = kinds["target"]
        self._lamp = kinds.get("lamp", "")
        self._goal = kinds.get("goal", "")
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
        if not isinstance(view.memory, TranscriptMemory):
            raise TypeError(
                "the expert reads a view with a Transcript; make it with environment.view(episode)"
            )
        turn = _Turn(view, view.memory, self._receptacles)
        carried = turn.memory.carrying
        if not carried:
            return self._fetch(turn)
        if kind_of(carried) != self._target:
            return self._drop(turn, carried)
        if self._lamp:
            return self._light(turn, carried)
        if self._verb and _STATE[self._verb] not in turn.memory.treated.get(carried, ()):
            return self._treat(turn, carried)
        return self._deliver(turn, carried)

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """Look around, or at things that are known already, as beginners do."""
        examine = "look"
        admissible = view.observation.admissible
        examinations = [action for action in admissible if action.startswith("examine ")]
        if examinations:
            examine = self._rng.choice(examinations)
        action = self._rng.choice(("look", "inventory", examine))
        if action in ("look", "inventory"):
            return self._say(action, action)
        return self._say("examine", action, thing=action.removeprefix("examine "))

    # Sub-goals

    def _fetch(self, turn: _Turn) -> tuple[str, str]:
        """Get a target into the hand: one that has been seen, or search."""
        filled = ""
        if self._two:
            filled = self._destination(turn)
        known = [
            (thing, place)
            for place, things in turn.memory.contents.items()
            if place != filled
            for thing in things or ()
            if kind_of(thing) == self._target
        ]
        for thing, place in known:
            take = f"take {thing} from {place}"
            if turn.can(take):
                return self._say("take", take, thing=thing, place=place)
        for thing, place in known:
            reopen = f"open {place}"
            if turn.can(reopen):
                return self._say("reopen_for", reopen, thing=thing, place=place)
            go = f"go to {place}"
            if turn.can(go):
                return self._say("return_for", go, thing=thing, place=place)
        if self._count_targets(turn, filled):
            return self._search(turn, self._target, "search_second")
        return self._search(turn, self._target, self._search_situation(turn))

    def _treat(self, turn: _Turn, carried: str) -> tuple[str, str]:
        """Clean, heat or cool the target."""
        stations = turn.places(_STATION[self._verb])
        for station in stations:
            treat = f"{self._verb} {carried} with {station}"
            if turn.can(treat):
                return self._say("treat", treat, thing=carried, place=station, other=self._verb)
        station = stations[0]
        return self._say(
            "to_station", f"go to {station}", thing=carried, place=station, other=self._verb
        )

    def _deliver(self, turn: _Turn, carried: str) -> tuple[str, str]:
        """Bring the target to where it belongs."""
        goal = self._destination(turn)
        put = f"move {carried} to {goal}"
        if turn.can(put):
            situation = "put"
            if self._two and not self._count_targets(turn, goal):
                situation = "put_first"
            return self._say(situation, put, thing=carried, place=goal)
        reopen = f"open {goal}"
        if turn.can(reopen):
            return self._say("open_goal", reopen, thing=carried, place=goal)
        go = f"go to {goal}"
        if not self._verb:
            return self._say("to_goal", go, thing=carried, place=goal)
        state = _STATE[self._verb]
        return self._say("to_goal_treated", go, thing=carried, place=goal, other=state)

    def _light(self, turn: _Turn, carried: str) -> tuple[str, str]:
        """Bring the target to the lamp, and turn that on."""
        for place, things in turn.memory.contents.items():
            for lamp in things or ():
                if kind_of(lamp) == self._lamp:
                    return self._use_lamp(turn, carried, lamp, place)
        return self._search(turn, self._lamp, "search_lamp", other=carried)

    def _use_lamp(self, turn: _Turn, carried: str, lamp: str, place: str) -> tuple[str, str]:
        use = f"use {lamp}"
        if turn.can(use):
            return self._say("use_lamp", use, thing=carried, other=lamp)
        return self._say("to_lamp", f"go to {place}", thing=carried, other=lamp, place=place)

    def _drop(self, turn: _Turn, carried: str) -> tuple[str, str]:
        """Free the hand of something that is not needed."""
        # Real games have things where nothing of their kind can be put back (a teddy bear on a
        # sofa): then the table is no help.
        for place in turn.places():
            put = f"move {carried} to {place}"
            if turn.can(put):
                return self._say("drop", put, thing=carried, place=place)
        fitting = [
            place
            for place in turn.places()
            if kind_of(carried) in self._contains.get(kind_of(place), ())
        ]
        for place in fitting:
            reopen = f"open {place}"
            if turn.can(reopen):
                return self._say("open_to_drop", reopen, thing=carried, place=place)
        if not fitting:
            return self._wander(turn, "no_place", thing=carried)
        place = min(fitting, key=lambda place: kind_of(place) in self._openable)
        return self._say("drop_at", f"go to {place}", thing=carried, place=place)

    # Places

    def _destination(self, turn: _Turn) -> str:
        """The receptacle to fill.

        It is the one with most targets in it, else one that is at hand, else the first.
        """

        def preference(place: str) -> tuple[int, bool]:
            return -self._count_targets(turn, place), turn.can(f"go to {place}")

        return min(turn.places(self._goal), key=preference)

    def _count_targets(self, turn: _Turn, place: str) -> int:
        """The number of targets that are known to be at a place."""
        things = turn.memory.contents.get(place) or ()
        return sum(kind_of(thing) == self._target for thing in things)

    def _search(self, turn: _Turn, kind: str, situation: str, **fields: str) -> tuple[str, str]:
        """Look where nobody has looked: at hand first, then in listed order.

        If informed, look at likely and open places before others.
        """
        unsearched = turn.memory.unsearched
        if not unsearched:
            return self._wander(turn, "lost", thing=kind)
        for place in unsearched:
            look_in = f"open {place}"
            if turn.can(look_in):
                return self._say("search_open", look_in, thing=kind, place=place)
        if self._informed:
            unsearched.sort(
                key=lambda place: (
                    not self._is_likely(kind, place),
                    kind_of(place) in self._openable,
                )
            )
        for place in unsearched:
            if not turn.can(f"go to {place}"):
                return self._say("search_here", f"examine {place}", thing=kind, place=place)
        place = unsearched[0]
        if self._rng.random() < _STRAY:
            place = self._rng.choice(unsearched)
        here = turn.memory.place
        return self._say(situation, f"go to {place}", thing=kind, place=place, here=here, **fields)

    def _search_situation(self, turn: _Turn) -> str:
        """The situation in a search for the only target, or for the first of two."""
        here = turn.memory.place
        if turn.memory.contents.get(here) is not None:
            return "search_next"
        if here:
            return "search_on"
        return "search_first"

    def _wander(self, turn: _Turn, situation: str, **fields: str) -> tuple[str, str]:
        """Go to any place, for want of a better one; look around where there is no other."""
        places = [place for place in turn.places() if turn.can(f"go to {place}")]
        if not places:
            return self._say("look", "look")
        place = self._rng.choice(places)
        return self._say(situation, f"go to {place}", place=place, **fields)

    def _is_likely(self, kind: str, place: str) -> bool:
        """True if things of this kind are kept at a place.

        A target is not likely in the goal's kind: there it would be done.
        """
        place_kind = kind_of(place)
        if kind == self._lamp:
            return place_kind not in self._openable
        return place_kind != self._goal and kind in self._contains.get(place_kind, ())

    def _say(self, situation: str, action: str, **fields: str) -> tuple[str, str]:
        return word_thought(situation, self._rng, **fields), action


class _Turn:
    """The memory, the possible actions and the receptacles of one turn."""

    def __init__(self, view: AgentView, memory: TranscriptMemory, receptacles: set[str]) -> None:
        self.memory = memory
        self._admissible = set(view.observation.admissible)
        matches = [_NAMES_PLACE.fullmatch(action) for action in view.observation.admissible]
        names = [match[1] for match in matches if match is not None]
        self._places = sorted(name for name in names if kind_of(name) in receptacles)

    def can(self, action: str) -> bool:
        """True if the action is possible now."""
        return action in self._admissible

    def places(self, kind: str = "") -> list[str]:
        """All receptacles of the room, or those of a kind.

        One can go to them, or, where one is, examine them.
        """
        return [place for place in self._places if not kind or kind_of(place) == kind]
