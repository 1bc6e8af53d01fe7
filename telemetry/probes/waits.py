"""What a run waits for, since when: told by each process, shown once it has taken a minute.

Pure: every call gets the time.

A process tells once a second all that it waits for now, as words and the seconds that it has waited
(Stats "waiting"). One that tells nothing any more is waited for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

SHOWN_AFTER_SECONDS = 60.0
"""How long a wait lasts before people are told of it."""

FORGOTTEN_AFTER_SECONDS = 10.0
"""How long what a process has told holds: it tells it again every second."""


class Wait(NamedTuple):
    """Something that a process waits for."""

    source: str
    what: str
    seconds: float


class OwnWaits:
    """What one process waits for. `clock`: seconds of any clock that does not jump."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[int, tuple[Callable[[], str], float]] = {}  # words of now, and since when
        self._number = 0

    @contextmanager
    def on(self, describe: Callable[[], str] | str) -> Iterator[None]:
        """Wait, while inside, for what `describe` says whenever somebody asks."""
        self._number += 1
        number = self._number
        words = describe if callable(describe) else lambda: describe
        self._open[number] = (words, self._clock())
        try:
            yield
        finally:
            del self._open[number]

    def seconds(self) -> dict[str, float]:
        """How long each thing has been waited for, by its words."""
        now = self._clock()
        return {describe(): now - since for describe, since in self._open.values()}


class StandingConditions:
    """Since when conditions have held that somebody looks at now and then."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def seconds(self, conditions: Mapping[str, str], now: float) -> dict[str, float]:
        """How long each of the conditions (name -> words) has held without a break, by its words;
        those not named hold no more."""
        self._since = {name: self._since.get(name, now) for name in conditions}
        return {words: now - self._since[name] for name, words in conditions.items()}


class WaitBook:
    """What all processes of a run wait for, as they have told."""

    def __init__(self) -> None:
        self._told: dict[
            str, tuple[float, Mapping[str, float]]
        ] = {}  # source -> when it told, and what
        self._heard: dict[str, float] = {}

    def hear(self, source: str, now: float) -> None:
        """Note that a process lives."""
        self._heard[source] = now

    def take(self, source: str, waits: Mapping[str, float], now: float) -> None:
        """Take what a process waits for now, in place of what it told before."""
        self._told[source] = (now, waits)

    def long_waits(self, now: float) -> list[Wait]:
        """The waits that people are to be told of: for processes that are silent, which others may
        wait for in turn; then the longest."""
        waits = [
            Wait(source, what, seconds + now - told)
            for source, (told, what_of_source) in self._told.items()
            if now - told < FORGOTTEN_AFTER_SECONDS
            for what, seconds in what_of_source.items()
        ]
        silent = [
            Wait("supervisor", f"a word from the {source}", now - heard)
            for source, heard in self._heard.items()
        ]
        return [*_long_ones(silent), *_long_ones(waits)]


def _long_ones(waits: list[Wait]) -> list[Wait]:
    shown = [wait for wait in waits if wait.seconds >= SHOWN_AFTER_SECONDS]
    return sorted(shown, key=lambda wait: -wait.seconds)
