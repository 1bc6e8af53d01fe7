"""The rules and texts of ALFWorld's text games.

They are the answers of TextWorld 1.7.0 on the domain and grammar of alfworld 0.4.2. Odd answers are
TextWorld's own, and kept: agents trained there have learned them. Those worth knowing:

- Commands must match exactly, case included; anything else is answered by "Nothing happens." and
  costs a turn.
- Only a thing in hand can be examined. (The domain means to allow it for things in sight too, but a
  comma in it prevents that.)
- One cannot go to where one is, nor to another receptacle at the same location, but can act on it
  at once.
- `look` at the start of a game, away from all receptacles, sees "nothing"; only the opening text
  lists them.
- `look` at a receptacle lists a thing only if it was taken out of that receptacle and now lies in
  another one beside it.
- `use` always turns on, never off, and works on lamps in closed receptacles too; so does `slice` on
  things that lie there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from envs.alfworld.game import Game, name_entities

NOTHING_HAPPENS = "Nothing happens."

_HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


class _Treatment(NamedTuple):
    """A way to change the state of a thing at a receptacle."""

    verb: str
    receptacle_kind: str
    affordance: str
    """The affordance that the thing must have."""
    gained_state: str
    lost_state: str


_TREATMENTS = (
    _Treatment("clean", "SinkBasin", "cleanable", "isClean", ""),
    _Treatment("heat", "Microwave", "heatable", "isHot", "isCool"),
    _Treatment("cool", "Fridge", "coolable", "isCool", "isHot"),
)
_KNIVES = ("Knife", "ButterKnife")
# Affordance and state that a task asks of its target.
_REQUIRED = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}


def join_phrases(phrases: list[str]) -> str:
    """The phrases as TextWorld lists them: `nothing`, `a`, `a, and b`, `a, b, and c`."""
    if not phrases:
        return "nothing"
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + ", and " + phrases[-1]


class Engine:
    """One game being played.

    Receptacles and items are numbered in the order of their ids, in which TextWorld lists them.
    `contents` are the items in each receptacle; `carried` is the item in hand, None for none.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self.receptacles = sorted(game.receptacles, key=lambda receptacle: receptacle.id)
        self.items = sorted(game.items, key=lambda item: item.id)
        receptacle_ids = [receptacle.id for receptacle in self.receptacles]
        item_ids = [item.id for item in self.items]
        names = name_entities(receptacle_ids + item_ids)
        self.receptacle_names = [names[id] for id in receptacle_ids]
        self.item_names = [names[id] for id in item_ids]

        receptacle_numbers = {id: r for r, id in enumerate(receptacle_ids)}
        item_numbers = {id: i for i, id in enumerate(item_ids)}
        self._receptacles_at: dict[str, list[int]] = {}
        for r, receptacle in enumerate(self.receptacles):
            if receptacle.location is not None:
                self._receptacles_at.setdefault(receptacle.location, []).append(r)
        self._inside = [sorted(item_numbers[id] for id in item.inside) for item in self.items]

        self._location = game.start
        self._opened = {r for r, receptacle in enumerate(self.receptacles) if receptacle.opened}
        self.contents: list[set[int]] = [set() for _ in self.receptacles]
        for i, item in enumerate(self.items):
            for receptacle_id in item.receptacles:
                self.contents[receptacle_numbers[receptacle_id]].add(i)
        self._locations = [set(item.locations) for item in self.items]
        self._state = [set(item.state) for item in self.items]
        self.carried: int | None = None
        # (item, receptacle) taken out and not put back: PDDL's negated fact in `look`.
        self._taken: set[tuple[int, int]] = set()
        self._commands: dict[str, Callable[[], str]] | None = None

    def opening(self) -> str:
        """The first text of the game."""
        if self._location in self._receptacles_at:
            room = self._look()
        else:
            around = [
                f"a {self.receptacle_names[r]}"
                for r, receptacle in enumerate(self.receptacles)
                if receptacle.location
            ]
            room = (
                "You are in the middle of a room. Looking quickly around you, you see "
                f"{join_phrases(around)}."
            )
        return (
            f"-= Welcome to TextWorld, ALFRED! =-\n\n{room}\n\nYour task is to: {self.game.task}."
        )

    def admissible(self) -> list[str]:
        """The commands that do something now, in alphabetical order."""
        return sorted(self._available())

    def step(self, command: str) -> str:
        """Execute a command and return what it says."""
        act = self._available().get(command.strip())
        if act is None:
            return NOTHING_HAPPENS
        self._commands = None
        return act()

    def won(self) -> bool:
        """True if the goal holds now."""
        goal = self.game.goal
        targets = {i for i, item in enumerate(self.items) if item.kind == goal.target}
        if goal.task_type == "look_at_obj_in_light":
            return self.carried in targets and self._is_lit()
        if goal.task_type in _REQUIRED:
            affordance, state = _REQUIRED[goal.task_type]
            targets = {
                i
                for i in targets
                if affordance in self.items[i].affordances and state in self._state[i]
            }
        wanted = 1
        if goal.task_type == "pick_two_obj_and_place":
            wanted = 2
        return any(
            receptacle.kind == goal.receptacle and len(targets & self.contents[r]) >= wanted
            for r, receptacle in enumerate(self.receptacles)
        )

    def _is_lit(self) -> bool:
        """True if the goal's lamp has been turned on and is here."""
        return any(
            self.items[i].kind == self.game.goal.lamp
            and "toggleable" in self.items[i].affordances
            and "isToggled" in self._state[i]
            for r in self._here()
            for i in self.contents[r]
        )

    def _here(self) -> list[int]:
        """The receptacles at the agent's location."""
        return self._receptacles_at.get(self._location, [])

    # Possible commands

    def _available(self) -> dict[str, Callable[[], str]]:
        """Every admissible command with what it does."""
        if self._commands is None:
            self._commands = self._enumerate()
        return self._commands

    def _enumerate(self) -> dict[str, Callable[[], str]]:
        commands: dict[str, Callable[[], str]] = {
            "help": lambda: _HELP,
            "inventory": self._inventory,
            "look": self._look,
        }
        for r, receptacle in enumerate(self.receptacles):
            if receptacle.location not in (None, self._location):
                commands[f"go to {self.receptacle_names[r]}"] = partial(self._go, r)
        for r in self._here():
            self._add_uses_of_receptacle(r, commands)
        if self.carried is not None:
            self._add_uses_of_item(self.carried, commands)
        return commands

    def _add_uses_of_receptacle(self, r: int, commands: dict[str, Callable[[], str]]) -> None:
        place = self.receptacle_names[r]
        commands[f"examine {place}"] = partial(self._describe, r)
        if r in self._opened and self.receptacles[r].openable:
            commands[f"close {place}"] = partial(self._close, r)
        elif self.receptacles[r].openable:
            commands[f"open {place}"] = partial(self._open, r)
        can_take = self.carried is None and self._is_accessible(r)
        for i in self.contents[r]:
            name = self.item_names[i]
            affordances = self.items[i].affordances
            if "toggleable" in affordances:
                commands[f"use {name}"] = partial(self._use, i)
            if can_take and "pickupable" in affordances:
                commands[f"take {name} from {place}"] = partial(self._take, i, r)

    def _add_uses_of_item(self, i: int, commands: dict[str, Callable[[], str]]) -> None:
        """Add the commands for an item in hand."""
        name = self.item_names[i]
        item = self.items[i]
        commands[f"examine {name}"] = partial(self._examine, i)
        for r in self._here():
            place = self.receptacle_names[r]
            kind = self.receptacles[r].kind
            if self._is_accessible(r) and item.kind in self.game.contains.get(kind, ()):
                commands[f"move {name} to {place}"] = partial(self._put, i, r)
            for treatment in _TREATMENTS:
                if kind == treatment.receptacle_kind and treatment.affordance in item.affordances:
                    command = f"{treatment.verb} {name} with {place}"
                    commands[command] = partial(self._treat, i, r, treatment)
        if item.kind in _KNIVES:
            for other, target in enumerate(self.items):
                if "sliceable" in target.affordances and self._location in self._locations[other]:
                    command = f"slice {self.item_names[other]} with {name}"
                    commands[command] = partial(self._slice, other, i)

    def _is_accessible(self, r: int) -> bool:
        return not self.receptacles[r].openable or r in self._opened

    # Commands: each changes the state, and returns the answer

    def _list_items(self, numbers: set[int] | list[int]) -> str:
        return join_phrases([f"a {self.item_names[i]}" for i in sorted(numbers)])

    def _look(self) -> str:
        here = self._here()
        if not here:
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        beside = [
            f"a {self.item_names[i]}"
            for i, locations in enumerate(self._locations)
            if self._location in locations
            for r in here
            if (i, r) in self._taken
        ]
        places = join_phrases([self.receptacle_names[r] for r in here])
        return f"You are facing the {places}. Next to it, you see {join_phrases(beside)}."

    def _inventory(self) -> str:
        if self.carried is None:
            return "You are not carrying anything."
        return f"You are carrying: a {self.item_names[self.carried]}."

    def _describe(self, r: int) -> str:
        name = self.receptacle_names[r]
        if not self._is_accessible(r):
            return f"The {name} is closed."
        items = self._list_items(self.contents[r])
        if self.receptacles[r].openable:
            return f"The {name} is open. In it, you see {items}."
        return f"On the {name}, you see {items}."

    def _go(self, r: int) -> str:
        self._location = self.receptacles[r].location or self._location
        return f"You arrive at {self.receptacle_names[r]}. {self._describe(r)}"

    def _open(self, r: int) -> str:
        self._opened.add(r)
        return f"You open the {self.receptacle_names[r]}. {self._describe(r)}"

    def _close(self, r: int) -> str:
        self._opened.discard(r)
        return f"You close the {self.receptacle_names[r]}."

    def _take(self, i: int, r: int) -> str:
        self.contents[r].discard(i)
        self._taken.add((i, r))
        self._locations[i].discard(self._location)
        self.carried = i
        return f"You pick up the {self.item_names[i]} from the {self.receptacle_names[r]}."

    def _put(self, i: int, r: int) -> str:
        self.contents[r].add(i)
        self._taken.discard((i, r))
        self._locations[i].add(self._location)
        self.carried = None
        return f"You move the {self.item_names[i]} to the {self.receptacle_names[r]}."

    def _treat(self, i: int, r: int, treatment: _Treatment) -> str:
        self._state[i].add(treatment.gained_state)
        self._state[i].discard(treatment.lost_state)
        item = self.item_names[i]
        return f"You {treatment.verb} the {item} using the {self.receptacle_names[r]}."

    def _use(self, i: int) -> str:
        self._state[i].add("isToggled")
        return f"You turn on the {self.item_names[i]}."

    def _slice(self, i: int, knife: int) -> str:
        self._state[i].add("isSliced")
        return f"You sliced the {self.item_names[i]} with the {self.item_names[knife]}."

    def _examine(self, i: int) -> str:
        name = self.item_names[i]
        item = self.items[i]
        state = self._state[i]
        if "isReceptacleObject" in item.affordances:
            return f"This is a normal {name}. In it, you see {self._list_items(self._inside[i])}."
        sliced_name = name
        if "isSliced" in state:
            sliced_name = f"sliced {name}"
        adjectives = _treatment_adjectives(state)
        if adjectives:
            return f"This is a {' and '.join(adjectives)} {sliced_name}."
        if "toggleable" in item.affordances and "isToggled" in state:
            return f"This {name} is on."
        if "sliceable" in item.affordances and "isSliced" in state:
            return f"This is a {sliced_name}."
        return f"There's nothing special about {name}."


def _treatment_adjectives(state: set[str]) -> list[str]:
    """The words for what was done to an item: at most a temperature, and `clean`."""
    adjectives = []
    if "isHot" in state:
        adjectives.append("hot")
    elif "isCool" in state and state.isdisjoint(("isClean", "isSliced")):
        adjectives.append("cold")
    elif "isCool" in state:
        adjectives.append("cool")
    if "isClean" in state:
        adjectives.append("clean")
    return adjectives
