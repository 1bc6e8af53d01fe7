"""The knowledge of a reader of an ALFWorld transcript.

It is where things were seen, where nobody looked yet, what is carried, and what was done to it.
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
_TAKE = re.compile(rf"^You pick up the {_NAME} from the {_NAME}\.")
_PUT = re.compile(rf"^You move the {_NAME} to the {_NAME}\.")
_TREAT = re.compile(rf"^You (clean|heat|cool) the {_NAME} using the {_NAME}\.")

_RESULT = {"clean": "clean", "heat": "hot", "cool": "cool"}


class TranscriptMemory:
    """The knowledge of a reader of one transcript, in the game's names ("mug 1").

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
        """Places into which nobody has looked, in alphabetical order.

        Closed ones that were visited are among them.
        """
        return sorted(place for place in self.places if self.contents.get(place) is None)

    def note(self, action: str, text: str) -> None:
        """Read an observation. `action` is not needed: the texts say what happened."""
        del action
        room = _ROOM.search(text)
        # Only once: `look` in the middle of a room says that there is nothing.
        if room is not None and not self.places:
            self.places = _THING.findall(room[1])
        arrival = _ARRIVE.match(text)
        if arrival is not None:
            self.place = arrival[1]
        for pattern, note in self._notes:
            match = pattern.search(text)
            if match is not None:
                note(self, *match.groups())
                break

    def _note_contents(self, place: str, things: str) -> None:
        self.contents[place] = _THING.findall(things)

    def _note_closed(self, place: str) -> None:
        self.contents.setdefault(place, None)

    def _note_take(self, thing: str, place: str) -> None:
        self.carrying = thing
        self.place = place
        contents = self.contents.get(place)
        if contents and thing in contents:
            contents.remove(thing)

    def _note_put(self, thing: str, place: str) -> None:
        self.carrying = ""
        self.place = place
        self.contents[place] = [*(self.contents.get(place) or []), thing]

    def _note_treatment(self, verb: str, thing: str, place: str) -> None:
        self.place = place
        new_state = _RESULT[verb]
        states = self.treated.get(thing, [])
        if new_state != "clean":
            # Hot and cool undo each other, clean stays.
            states = [state for state in states if state == "clean"]
        if new_state not in states:
            states = [*states, new_state]
        self.treated[thing] = states

    _notes = (
        (_SURFACE, _note_contents),
        (_OPEN, _note_contents),
        (_CLOSED, _note_closed),
        (_TAKE, _note_take),
        (_PUT, _note_put),
        (_TREAT, _note_treatment),
    )
    """How a text of each form is noted; only the first form that fits counts."""
