"""Faults that happen to a run in `benchmarks.chaos`.

Each strikes once, and is over when `strike` returns.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.chaos_environment import STEP_TIMEOUT_SECONDS
from benchmarks.chaos_proxy import CUTS, Cut, Proxy

VICTIMS = ("actor", "controller", "shard", "engine", "learner")
"""Processes that are killed, and those that are stopped."""

SILENCE_SECONDS = (4.0, 12.0)
"""How long nothing arrives over a link, at least and at most."""
MISFORTUNE_SECONDS = (1.0, STEP_TIMEOUT_SECONDS + 4.0)
"""How long user code or an engine goes wrong, at least and at most."""
CLOCK_SECONDS = (-86_400.0, -3_600.0, 0.0, 3_600.0, 86_400.0)
"""How far ahead a clock may be."""
FULL_SECONDS = (1.0, 5.0)
"""How long the disk is full, at least and at most."""
FILLING_BYTES = (1 << 20, 1 << 12, 1)
"""Sizes of the writes that fill a disk to its last byte."""


class Stricken(Protocol):
    """Target of the faults: a run, and what it stands on."""

    misfortunes: Path
    disk: Path | None
    proxy: Proxy

    @property
    def process(self) -> subprocess.Popen: ...

    def processes(self, victim: str) -> list[psutil.Process]: ...


class Fault(Protocol):
    """Something that happens to a run; `str` of it is its kind."""

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        """Let it happen. Returns whether there was anything to strike."""
        ...


@dataclass(frozen=True)
class Kill:
    """A process is killed (SIGKILL)."""

    victim: str

    def __str__(self) -> str:
        return f"kill {self.victim}"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        found = run.processes(self.victim)
        if not found:
            return False
        try:
            chance.choice(found).kill()
        except psutil.NoSuchProcess:
            return False
        return True


@dataclass(frozen=True)
class Stop:
    """A process is stopped for a while (SIGSTOP, SIGCONT)."""

    victim: str

    def __str__(self) -> str:
        return f"stop {self.victim}"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        found = run.processes(self.victim)
        if not found:
            return False
        victim = chance.choice(found)
        try:
            victim.suspend()
            time.sleep(chance.uniform(0.5, 8.0))
            victim.resume()
        except psutil.NoSuchProcess:
            return False
        return True


@dataclass(frozen=True)
class HangUp:
    """The terminal of the run goes away (SIGHUP)."""

    def __str__(self) -> str:
        return "SIGHUP"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        run.process.send_signal(signal.SIGHUP)
        return True


@dataclass(frozen=True)
class CutLinks:
    """All links of the actors that come from elsewhere are cut."""

    how: Cut

    def __str__(self) -> str:
        return f"cut links: {self.how}"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        struck = run.proxy.cut(self.how)
        if self.how in ("silence", "delay"):
            time.sleep(chance.uniform(*SILENCE_SECONDS))
            run.proxy.mend()
        return struck > 0


@dataclass(frozen=True)
class Misfortune:
    """User code, or an engine, goes wrong from inside for a while.

    See benchmarks/misfortune and benchmarks/chaos_environment.py.
    """

    name: str

    def __str__(self) -> str:
        return self.name

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        file = run.misfortunes / self.name
        file.touch()
        time.sleep(chance.uniform(*MISFORTUNE_SECONDS))
        file.unlink()
        return True


@dataclass(frozen=True)
class ClockJump:
    """The clock of all processes jumps, and stays there."""

    def __str__(self) -> str:
        return "clock jump"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        (run.misfortunes / "clock").write_text(str(chance.choice(CLOCK_SECONDS)))
        return True


@dataclass(frozen=True)
class FullDisk:
    """The disk of the run's directory is full for a while."""

    def __str__(self) -> str:
        return "full disk"

    def strike(self, run: Stricken, chance: random.Random) -> bool:
        if run.disk is None:
            return False
        filling = run.disk / "filling"
        with filling.open("wb", buffering=0) as file:
            for size in FILLING_BYTES:
                fill(file, size)
        time.sleep(chance.uniform(*FULL_SECONDS))
        filling.unlink()
        return True


def fill(file: FileIO, size: int) -> None:
    """Write `size` bytes again and again until there is no room for them."""
    try:
        while file.write(bytes(size)):
            pass
    except OSError:
        return


FAULTS: list[Fault] = [
    *(Kill(victim) for victim in (*VICTIMS, "fork server", "supervisor")),
    *(Stop(victim) for victim in VICTIMS),
    *(CutLinks(how) for how in CUTS),
    *(Misfortune(name) for name in ("nan", "surrogates", "slow prompt", "exit")),
    HangUp(),
    ClockJump(),
    FullDisk(),
]
QUICK: list[Fault] = [
    Kill("actor"),
    Stop("actor"),
    CutLinks("one end"),
    Misfortune("surrogates"),
    ClockJump(),
]
"""Faults none of which ends the run."""
