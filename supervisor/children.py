"""Child processes that end together: each in a session of its own, each killed by the kernel if the supervisor dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.lifetime import dying_with_parent

ROOT = Path(__file__).resolve().parent.parent


class ChildFailed(RuntimeError):
    """A process of the run ended that should not have."""


@dataclass
class Child:
    """One process, with everything it starts, and its log."""

    name: str
    process: subprocess.Popen
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raises ChildFailed, with the traceback from its log, if the process has ended with an error."""
        if self.ended and self.process.returncode != 0:
            raise ChildFailed(f"the {self.name} ended with status {self.process.returncode}\n{last_words(self.log)}")


class Restarts:
    """How often a process may be started again: `limit` times in `seconds`. One that always fails at once is not to be started for ever."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._times: list[float] = []

    def allowed(self, now: float) -> bool:
        """Whether it may be started again at `now` (seconds of any clock), which then counts."""
        self._times = [time for time in self._times if time > now - self._seconds]
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True


def python_module(arguments: Sequence[str]) -> list[str]:
    """The command `python -m arguments...` without the working directory on its path (-P), nor on that of processes that it spawns: a
    config.py or an envs/ there is the user's, and not ours."""
    return [sys.executable, "-P", "-m", *arguments]


def our_environment() -> dict[str, str]:
    """This process's environment, in which Python finds our modules first, and then the user's on PYTHONPATH. An empty entry there would
    be the working directory, and is left out."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *given])}


def start(name: str, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None, launch: Sequence[str] = ()) -> Child:
    """Start `python -m arguments...` of this project, its output appended to `log`. `launch`: a command that runs it elsewhere."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*launch, *python_module(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**our_environment(), **(environment or {})},
            start_new_session=True,
            preexec_fn=dying_with_parent(),
        )
    return Child(name, process, log)


def stop_all(children: Sequence[Child], patience: float = 5.0) -> None:
    """End all children: politely, then, after `patience` seconds, by force. Nothing of theirs is left."""
    for child in children:
        if not child.ended:
            child.signal(signal.SIGTERM)
    deadline = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
    for child in children:
        child.signal(signal.SIGKILL)  # what it started, too, even if it has ended itself
        child.process.wait()


def last_words(log: Path, lines: int = 25) -> str:
    """The last traceback in a log, or else its last lines."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    starts = [i for i, line in enumerate(text) if line.lstrip(" |+-").startswith(("Traceback", "Exception Group Traceback"))]
    tail = text[starts[-1] :] if starts else text
    return "\n".join(f"  {line}" for line in tail[-lines:]) or f"  (nothing in {log})"
