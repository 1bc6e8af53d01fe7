"""What a reader of an ALFWorld transcript knows: what was seen where, where nobody looked yet, what
is carried, what was done to it.

Everything is read from the texts that the agent was shown, so an agent that remembers its whole
transcript knows the same.
"""

from __future__ import annotations

import re

_NAME = r"([a-z]+ \d+)"
_ROOM = re.compile(r"Looking quickly around you, you see (.*)\.")
_SURFACE = re.compile(rf"On the {_NAME}, you see (.*)\.")
_OPEN = re.compile(rf"The {_NAME} is open\. In it, you see (.*)\.")
_CLOSED = re.compile(rf"The {_NAME} is closed\.")
_THING = re.compile(rf"a {_NAME}")
_ARRIVE = re.compile(rf"You arrive at {_NAME}\.")
_TAKE = re.compile(rf"You pick up the {_NAME} from the {_NAME}\.")
_PUT = re.compile(rf"You move the {_NAME} to the {_NAME}\.")
_TREAT = re.compile(rf"You (clean|heat|cool) the {_NAME} using the {_NAME}\.")

_RESULT = {"clean": "clean", "heat": "hot", "cool": "cool"}


class Transcript:
    """Attributes are names as the game gives them ("mug 1").

    `places`: all receptacles of the room, as its description lists them. `contents`: things by
    place, in order of first sight; None for a place seen closed only. A place that was never looked
    at, but into which something was put, counts as seen with that alone (possible only at shared
    locations). `place`: where the agent last arrived, or touched something. `carrying`: "" for
    nothing. `treated`: states by thing, of clean, hot, cool.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self.contents: dict[str, list[str] | None] = {}
        self.place = ""
        self.carrying = ""
        self.treated: dict[str, list[str]] = {}

    @property
    def unsearched(self) -> list[str]:
        """Places into which nobody has looked, closed ones that were visited among them, in
        alphabetical order."""
        return sorted(place for place in self.places if self.contents.get(place) is None)

    def note(self, action: str, text: str) -> None:
        """Read an observation. `action` is not needed: the texts say what happened."""
        del action
        if (
            found := _ROOM.search(text)
        ) and not self.places:  # once: `look` in the middle of a room says that there is nothing
            self.places = _THING.findall(found[1])
        if found := _ARRIVE.match(text):
            self.place = found[1]
        if found := _SURFACE.search(text) or _OPEN.search(text):
            self.contents[found[1]] = _THING.findall(found[2])
        elif found := _CLOSED.search(text):
            self.contents.setdefault(found[1], None)
        elif found := _TAKE.match(text):
            self.carrying = found[1]
            self.place = found[2]
            left = self.contents.get(self.place)
            if left and self.carrying in left:
                left.remove(self.carrying)
        elif found := _PUT.match(text):
            self.carrying = ""
            self.place = found[2]
            held = self.contents.get(self.place)
            self.contents[self.place] = [*(held or []), found[1]]
        elif found := _TREAT.match(text):
            self.place = found[3]
            result = _RESULT[found[1]]
            # Hot and cool undo each other, clean stays.
            kept = [
                state
                for state in self.treated.get(found[2], ())
                if state == "clean" or result == "clean"
            ]
            self.treated[found[2]] = kept if result in kept else [*kept, result]
