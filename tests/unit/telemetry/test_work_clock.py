"""Progress of commands: said once it takes a while, and now and then."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from telemetry.work_clock import WorkClock, ticking


class Work:
    """A clock of a command's work that a test moves on, and what it prints."""

    def __init__(self, terminal: bool = False) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=80)
        self.clock = WorkClock("reading", console, clock=lambda: self.now)

    def tick(self, at: float) -> str:
        """What a tick at second `at` prints."""
        self.now = at
        before = len(self.file.getvalue())
        self.clock.tick()
        return self.file.getvalue()[before:]


def test_work_clock_is_silent_at_first_and_speaks_now_and_then() -> None:
    work = Work()
    said = [work.tick(second) for second in (0.0, 2.9, 3.0, 12.9, 13.0, 22.0)]
    assert said == ["", "", "reading  3 s\n", "", "reading  13 s\n", ""]


def test_work_clock_of_steps_says_how_many_are_done_and_when_they_all_are() -> None:
    work = Work()
    for step in work.clock.track(range(40), "episodes"):
        if step == 20:
            assert work.tick(20.0) == "episodes  20/40  20 s, about 20 s left\n"
    work.clock.begin("drawing")
    assert work.tick(30.0) == "drawing  30 s\n"


def test_work_clock_on_a_terminal_leaves_nothing_behind() -> None:
    work = Work(terminal=True)
    assert work.tick(2.0) == ""
    assert "reading" in work.tick(3.0) and "reading" in work.tick(3.25)
    work.clock.close()
    assert work.file.getvalue().endswith("\x1b[2K"), "the line is erased"


def test_ticking_goes_on_until_the_work_is_done() -> None:
    ticks = threading.Semaphore(0)
    with ticking(ticks.release, every_s=0.001):
        assert all(ticks.acquire(timeout=10) for _ in range(3))
    threads = [thread.name for thread in threading.enumerate()]
    assert "clock" not in threads
