"""Progress of a command: what it does and how far it is, once that takes more than a moment.

It is on stderr, for what the command is asked for is on stdout: a line that vanishes on a terminal,
else a plain one now and then. A run has its own (telemetry/progress.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text

from telemetry.analysis.pace import phase_seconds_left
from telemetry.format import format_duration

SHOWN_AFTER_S = 3.0
"""Seconds of silence after which it is said what is being done."""

PLAIN_S = 10.0
"""Seconds between two plain lines."""

TICK_S = 0.25
"""Seconds between two looks at the clock."""

Item = TypeVar("Item")


class WorkClock:
    """What a command does now, since when, and how far it is. Show it by `show_work`."""

    def __init__(
        self, words: str, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._console = console
        self._live: Live | None = None
        self._started = clock()
        self._next_s = SHOWN_AFTER_S
        self.begin(words)

    def begin(self, words: str, of: int = 0) -> None:
        """Begin another piece of work, of so many steps; 0: nobody knows."""
        self._words = words
        self._began = self._clock()
        self._done = 0
        self._of = of

    def track(self, items: Sequence[Item], words: str) -> Iterator[Item]:
        """Yield items, each of which is a step of the work."""
        self.begin(words, len(items))
        for item in items:
            yield item
            self._done += 1

    def line(self) -> str:
        """What is being done, how far it is, and for how long the command has been at work."""
        now = self._clock()
        steps = ""
        if self._of:
            steps = f"{self._done:,}/{self._of:,}  "
        words = f"{self._words}  {steps}{format_duration(now - self._started)}"
        left_s = phase_seconds_left(self._done, self._of, now - self._began)
        if left_s is not None and left_s >= 1:
            words += f", about {format_duration(left_s)} left"
        return words

    def tick(self) -> None:
        """Show the line, if it is due."""
        seconds = self._clock() - self._started
        if seconds < self._next_s:
            return
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(Text(self.line(), style="dim"), refresh=True)
            return
        self._next_s = seconds + PLAIN_S
        self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the line from a terminal."""
        if self._live is not None:
            self._live.stop()


@contextmanager
def show_work(words: str) -> Iterator[WorkClock]:
    """Show what is done inside, from a thread of its own."""
    clock = WorkClock(words, Console(stderr=True))
    try:
        with ticking(clock.tick):
            yield clock
    finally:
        clock.close()


def track(items: Sequence[Item], words: str) -> Iterator[Item]:
    """Yield items, and show how many of them are done."""
    with show_work(words) as work:
        yield from work.track(items, words)


@contextmanager
def ticking(tick: Callable[[], None], every_s: float = TICK_S) -> Iterator[None]:
    """Call `tick` again and again while inside, in a thread of its own."""
    ended = threading.Event()

    def tick_until_ended() -> None:
        while not ended.wait(every_s):
            tick()

    thread = threading.Thread(target=tick_until_ended, daemon=True, name="clock")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
