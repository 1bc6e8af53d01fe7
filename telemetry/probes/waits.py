"""Waits of a run, since when: told by each process, shown once they have taken a minute.

Pure: every call gets the time.

A process tells once a second all that it waits for now, as words and the seconds that it has waited
(Stats "waiting"). One that tells nothing any more is waited for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

SHOWN_AFTER_SECONDS = 60.0
"""How long a wait lasts before people are told of it."""

FORGOTTEN_AFTER_SECONDS = 10.0
"""How long the word of a process holds: it comes again every second."""


FIRST_WEIGHTS = "the first weights of the learner"
"""What others wait for as long as the learner makes a policy."""


class Wait(NamedTuple):
    """Something that a process waits for."""

    source: str
    what: str
    seconds: float


class OwnWaits:
    """Waits of one process. `clock`: seconds of any clock that does not jump."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Words of now, and since when, by a number.
        self._open: dict[int, tuple[Callable[[], str] | str, float]] = {}
        self._number = 0

    @contextmanager
    def on(self, describe: Callable[[], str] | str) -> Iterator[None]:
        """Wait, while inside, for what `describe` says whenever somebody asks."""
        self._number += 1
        number = self._number
        self._open[number] = (describe, self._clock())
        try:
            yield
        finally:
            del self._open[number]

    def seconds(self) -> dict[str, float]:
        """How long each thing has been waited for, by its words."""
        now = self._clock()
        seconds = {}
        for describe, since in self._open.values():
            words = describe() if callable(describe) else describe
            seconds[words] = now - since
        return seconds


class StandingConditions:
    """Conditions that somebody looks at now and then, and since when they have held."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def seconds(self, conditions: Mapping[str, str], now: float) -> dict[str, float]:
        """How long each of the conditions (name -> words) has held without a break, by its words.

        Those not named hold no more.
        """
        self._since = {name: self._since.get(name, now) for name in conditions}
        return {words: now - self._since[name] for name, words in conditions.items()}


class WaitBook:
    """Waits of all processes of a run, as they have told."""

    def __init__(self) -> None:
        # Source -> when it told, and what it waits for.
        self._told: dict[str, tuple[float, Mapping[str, float]]] = {}
        self._heard: dict[str, float] = {}

    def hear(self, source: str, now: float) -> None:
        """Note that a process lives."""
        self._heard[source] = now

    def take(self, source: str, waits: Mapping[str, float], now: float) -> None:
        """Take what a process waits for now, in place of what it told before."""
        self._told[source] = (now, waits)

    def long_waits(self, now: float, told_since: float = -math.inf) -> list[Wait]:
        """The waits that people are to be told of, the longest first, of those told since then.

        Those for processes that are silent, which others may wait for in turn, come before all.
        """
        silent = [
            Wait("supervisor", f"a word from the {source}", now - heard)
            for source, heard in self._heard.items()
        ]
        waits = []
        for source, (told_at, seconds_by_words) in self._told.items():
            if told_at >= told_since and now - told_at < FORGOTTEN_AFTER_SECONDS:
                for words, seconds in seconds_by_words.items():
                    waits.append(Wait(source, words, seconds + now - told_at))
        return [*_select_long(silent), *_select_long(waits)]


def _select_long(waits: list[Wait]) -> list[Wait]:
    long = [wait for wait in waits if wait.seconds >= SHOWN_AFTER_SECONDS]
    return sorted(long, key=lambda wait: -wait.seconds)
