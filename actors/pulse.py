"""Pulses of actors, by which the fork server sees whether their event loops run.

Code of an environment may keep all threads of a process from running (a regular expression, an
extension), and then nothing in the process can tell.

What counts is time in which the fork server itself ran, and in which the actor was not stopped:
neither a machine that sleeps nor a process that somebody has stopped is an environment's fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.1
"""Seconds between two looks at all actors."""

GRACE_LOOKS = 50
"""Looks after which an actor is killed that was told to end, with tracebacks in the log."""

_BYTES = 8


class Pulse:
    """A count in memory that a process shares with those it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)

    def read(self) -> int:
        """Return how often it has beaten."""
        return int.from_bytes(self._memory[:], "little")

    async def beat(self) -> None:
        """Beat forever, as long as the event loop runs."""
        while True:
            self._memory[:] = (self.read() + 1).to_bytes(_BYTES, "little")
            await asyncio.sleep(BEAT_SECONDS)


class PulseMonitor:
    """Ends actors whose pulse stands still for so many seconds of the fork server's own time."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        # pid -> its pulse, and how often that was seen
        self._looks: dict[int, tuple[int, int]] = {}
        self._ended: set[int] = set()

    def look(self, pulses: Mapping[int, Pulse]) -> None:
        """Look at the actors (process -> pulse); to be called every LOOK_SECONDS, or later."""
        self._looks = {pid: self._count_looks(pid, pulse.read()) for pid, pulse in pulses.items()}
        grace_seconds = GRACE_LOOKS * LOOK_SECONDS
        for pid, (_, looks) in self._looks.items():
            seconds = looks * LOOK_SECONDS
            if pid not in self._ended:
                if seconds > self._longest_seconds:
                    self._end(pid)
            elif seconds > self._longest_seconds + grace_seconds:
                os.kill(pid, signal.SIGKILL)  # code of the environment handles SIGABRT itself

    def describe_end(self, pid: int) -> str:
        """Say how this has ended the process, from the verb on; "" for another one."""
        if pid not in self._ended:
            return ""
        self._ended.discard(pid)
        return f"was ended, as no other code ran for {self._longest_seconds:g} s"

    def _count_looks(self, pid: int, beats: int) -> tuple[int, int]:
        """Return the beats of a pulse, and how many looks have seen the same number before."""
        beats_before, looks = self._looks.get(pid, (beats, 0))
        if beats != beats_before:
            return beats, 0
        return beats, looks + 1

    def _end(self, pid: int) -> None:
        if _is_stopped(pid):
            self._looks[pid] = (self._looks[pid][0], 0)
            return
        log.warning("actor %d has stood still for %g s: ended", pid, self._longest_seconds)
        self._ended.add(pid)
        os.kill(pid, signal.SIGABRT)  # its fault handler writes the tracebacks of all threads


def _is_stopped(pid: int) -> bool:
    """Say whether somebody has stopped the process, as SIGSTOP does."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in ("T", "t")
    return False
