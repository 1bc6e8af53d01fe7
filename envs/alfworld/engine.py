"""The rules and texts of ALFWorld's text games: what TextWorld 1.7.0 answers on the domain and
grammar of alfworld 0.4.2.

Odd answers are TextWorld's own, and kept: agents trained there have learned them. Those worth knowing:
- Commands must match exactly, case included; anything else is answered by "Nothing happens." and costs a turn.
- Only a thing in hand can be examined. (The domain means to allow it for things in sight too, but a comma in it prevents that.)
- One cannot go to where one is, nor to another receptacle at the same location, but can act on it at once.
- `look` at the start of a game, away from all receptacles, sees "nothing"; only the opening text lists them.
- `look` at a receptacle lists a thing only if it was taken out of that receptacle and now lies in another one beside it.
- `use` always turns on, never off, and works on lamps in closed receptacles too; so does `slice` on what lies there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from envs.alfworld.game import Game, names

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

# verb, what the receptacle must be, what the thing must be, what it becomes and what it no longer
# is.
_TREATMENTS = (
    ("clean", "SinkBasin", "cleanable", "isClean", None),
    ("heat", "Microwave", "heatable", "isHot", "isCool"),
    ("cool", "Fridge", "coolable", "isCool", "isHot"),
)
_KNIVES = ("Knife", "ButterKnife")
# What a task asks of its target: affordance and state.
_REQUIRED = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}


def listing(phrases: list[str]) -> str:
    """`nothing`, `a`, `a, and b`, `a, b, and c`."""
    if len(phrases) < 2:
        return phrases[0] if phrases else "nothing"
    return ", ".join(phrases[:-1]) + ", and " + phrases[-1]


class Engine:
    """One game being played.

    Receptacles and items are numbered in the order of their ids, in which TextWorld lists them.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self.receptacles = sorted(game.receptacles, key=lambda receptacle: receptacle.id)
        self.items = sorted(game.items, key=lambda item: item.id)
        named = names([r.id for r in self.receptacles] + [i.id for i in self.items])
        self._receptacle_names = [named[r.id] for r in self.receptacles]
        self._item_names = [named[i.id] for i in self.items]

        number = {r.id: n for n, r in enumerate(self.receptacles)}
        item_number = {i.id: n for n, i in enumerate(self.items)}
        self._at: dict[str, list[int]] = {}
        for r, receptacle in enumerate(self.receptacles):
            if receptacle.location is not None:
                self._at.setdefault(receptacle.location, []).append(r)
        self._inside = [sorted(item_number[i] for i in item.inside) for item in self.items]

        self._location = game.start
        self._opened = {r for r, receptacle in enumerate(self.receptacles) if receptacle.opened}
        self._contents: list[set[int]] = [set() for _ in self.receptacles]
        for i, item in enumerate(self.items):
            for place in item.receptacles:
                self._contents[number[place]].add(i)
        self._locations = [set(item.locations) for item in self.items]
        self._state = [set(item.state) for item in self.items]
        self._held: int | None = None
        # (item, receptacle) taken out and not put back: what PDDL's negated fact stands for in
        # `look`.
        self._taken: set[tuple[int, int]] = set()
        self._commands: dict[str, Callable[[], str]] | None = None

    def opening(self) -> str:
        """The first text of the game."""
        if self._location in self._at:
            room = self._look()
        else:
            around = [
                f"a {self._receptacle_names[r]}"
                for r, receptacle in enumerate(self.receptacles)
                if receptacle.location
            ]
            room = (
                "You are in the middle of a room. Looking quickly around you, you see "
                f"{listing(around)}."
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
        """Whether the goal holds now."""
        goal = self.game.goal
        targets = {i for i, item in enumerate(self.items) if item.kind == goal.target}
        if goal.task_type == "look_at_obj_in_light":
            return self._held in targets and any(
                self.items[i].kind == goal.lamp
                and "toggleable" in self.items[i].affordances
                and "isToggled" in self._state[i]
                for r in self._at.get(self._location, ())
                for i in self._contents[r]
            )
        if goal.task_type in _REQUIRED:
            affordance, state = _REQUIRED[goal.task_type]
            targets = {
                i
                for i in targets
                if affordance in self.items[i].affordances and state in self._state[i]
            }
        wanted = 2 if goal.task_type == "pick_two_obj_and_place" else 1
        return any(
            receptacle.kind == goal.receptacle and len(targets & self._contents[r]) >= wanted
            for r, receptacle in enumerate(self.receptacles)
        )

    # What can be done now

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
                commands[f"go to {self._receptacle_names[r]}"] = partial(self._go, r)
        here = self._at.get(self._location, ())
        for r in here:
            place = self._receptacle_names[r]
            commands[f"examine {place}"] = partial(self._describe, r)
            if self.receptacles[r].openable:
                if r in self._opened:
                    commands[f"close {place}"] = partial(self._close, r)
                else:
                    commands[f"open {place}"] = partial(self._open, r)
            takes = self._held is None and self._accessible(r)
            for i in self._contents[r]:
                affordances = self.items[i].affordances
                if "toggleable" in affordances:
                    commands[f"use {self._item_names[i]}"] = partial(self._use, i)
                if takes and "pickupable" in affordances:
                    commands[f"take {self._item_names[i]} from {place}"] = partial(self._take, i, r)
        if self._held is not None:
            self._add_uses_of(self._held, here, commands)
        return commands

    def _add_uses_of(
        self, held: int, here: list[int] | tuple[()], commands: dict[str, Callable[[], str]]
    ) -> None:
        name = self._item_names[held]
        item = self.items[held]
        commands[f"examine {name}"] = partial(self._examine, held)
        for r in here:
            place = self._receptacle_names[r]
            receptacle = self.receptacles[r]
            if self._accessible(r) and item.kind in self.game.contains.get(receptacle.kind, ()):
                commands[f"move {name} to {place}"] = partial(self._put, held, r)
            for verb, kind, affordance, becomes, no_longer in _TREATMENTS:
                if receptacle.kind == kind and affordance in item.affordances:
                    commands[f"{verb} {name} with {place}"] = partial(
                        self._treat, held, r, verb, becomes, no_longer
                    )
        if item.kind in _KNIVES:
            for i, other in enumerate(self.items):
                if "sliceable" in other.affordances and self._location in self._locations[i]:
                    commands[f"slice {self._item_names[i]} with {name}"] = partial(
                        self._slice, i, held
                    )

    def _accessible(self, r: int) -> bool:
        return not self.receptacles[r].openable or r in self._opened

    # What it does, and says

    def _things(self, numbers: set[int] | list[int]) -> str:
        return listing([f"a {self._item_names[i]}" for i in sorted(numbers)])

    def _look(self) -> str:
        here = self._at.get(self._location)
        if here is None:
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        beside = [
            f"a {self._item_names[i]}"
            for i, locations in enumerate(self._locations)
            if self._location in locations
            for r in here
            if (i, r) in self._taken
        ]
        places = listing([self._receptacle_names[r] for r in here])
        return f"You are facing the {places}. Next to it, you see {listing(beside)}."

    def _inventory(self) -> str:
        if self._held is None:
            return "You are not carrying anything."
        return f"You are carrying: a {self._item_names[self._held]}."

    def _describe(self, r: int) -> str:
        name = self._receptacle_names[r]
        if not self._accessible(r):
            return f"The {name} is closed."
        seen = self._things(self._contents[r])
        return (
            f"The {name} is open. In it, you see {seen}."
            if self.receptacles[r].openable
            else f"On the {name}, you see {seen}."
        )

    def _go(self, r: int) -> str:
        self._location = self.receptacles[r].location or self._location
        return f"You arrive at {self._receptacle_names[r]}. {self._describe(r)}"

    def _open(self, r: int) -> str:
        self._opened.add(r)
        return f"You open the {self._receptacle_names[r]}. {self._describe(r)}"

    def _close(self, r: int) -> str:
        self._opened.discard(r)
        return f"You close the {self._receptacle_names[r]}."

    def _take(self, i: int, r: int) -> str:
        self._contents[r].discard(i)
        self._taken.add((i, r))
        self._locations[i].discard(self._location)
        self._held = i
        return f"You pick up the {self._item_names[i]} from the {self._receptacle_names[r]}."

    def _put(self, i: int, r: int) -> str:
        self._contents[r].add(i)
        self._taken.discard((i, r))
        self._locations[i].add(self._location)
        self._held = None
        return f"You move the {self._item_names[i]} to the {self._receptacle_names[r]}."

    def _treat(self, i: int, r: int, verb: str, becomes: str, no_longer: str | None) -> str:
        self._state[i].add(becomes)
        if no_longer is not None:
            self._state[i].discard(no_longer)
        return f"You {verb} the {self._item_names[i]} using the {self._receptacle_names[r]}."

    def _use(self, i: int) -> str:
        self._state[i].add("isToggled")
        return f"You turn on the {self._item_names[i]}."

    def _slice(self, i: int, knife: int) -> str:
        self._state[i].add("isSliced")
        return f"You sliced the {self._item_names[i]} with the {self._item_names[knife]}."

    def _examine(self, i: int) -> str:
        name = self._item_names[i]
        item = self.items[i]
        state = self._state[i]
        if "isReceptacleObject" in item.affordances:
            return f"This is a normal {name}. In it, you see {self._things(self._inside[i])}."
        clean = "isClean" in state
        sliced = "isSliced" in state
        temperature = "hot" if "isHot" in state else "cool" if "isCool" in state else ""
        if clean or temperature:
            if temperature == "cool" and not clean and not sliced:
                temperature = "cold"
            adjectives = " and ".join(filter(None, (temperature, "clean" if clean else "")))
            return f"This is a {adjectives} {'sliced ' if sliced else ''}{name}."
        if "toggleable" in item.affordances and "isToggled" in state:
            return f"This {name} is on."
        if "sliceable" in item.affordances and sliced:
            return f"This is a sliced {name}."
        return f"There's nothing special about {name}."
