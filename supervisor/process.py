"""Child processes that end together: each in a session of its own, each killed by the kernel if the
supervisor dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.lifetime import describe_end, dying_with_parent

ROOT = Path(__file__).resolve().parent.parent


MEMORY = {
    "learner": "learner.microbatch_tokens, or set learner.gradient_checkpointing",
    "engine": "engine.kv_cache_gb or engine.max_sequences",
    "actors": "actor.count",
}
"""Process -> the settings to lower where it has not enough memory."""

TRACEBACK = "Traceback (most recent call last)"
LITTLE_ROOM_BYTES = 1 << 20

SENTENCE = "error: "
"""How the last line of a process of ours begins that ends with a sentence, not with a traceback."""

SAID_BEFORE = "See root cause above"
"""Of an error of vLLM's server, which says no more."""


class RunFailed(RuntimeError):
    """A run cannot go on. The message has the cause first, then where more is said."""


class ChildFailed(RunFailed):
    """A process of the run ended that should not have."""


@dataclass
class ChildProcess:
    """One process, with everything it starts, and its log."""

    name: str
    process: subprocess.Popen
    log: Path
    log_begin: int = 0
    """Bytes of the log that processes before this one wrote."""

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raises ChildFailed, with the cause and the place of its log, if the process has ended
        with an error."""
        if self.ended and self.process.returncode != 0:
            raise ChildFailed(f"{self.failure()}\nits log: {self.log}")

    def failure(self) -> str:
        """Why it has ended, in one line."""
        end = describe_end(self.process.returncode)
        if end.startswith("was killed (SIGKILL"):
            memory = MEMORY.get(self.name.partition("-")[0])
            return f"the {self.name} {end}" + (f"; if it did, lower {memory}" if memory else "")
        cause = cause_in(self.log, self.log_begin)
        if end.startswith("ended with") and cause:
            return f"the {self.name} failed: {cause}"
        free = shutil.disk_usage(self.log.parent).free
        if free < LITTLE_ROOM_BYTES:  # for its last words
            return (
                f"the {self.name} {end}, and could not say why: {self.log.parent} has "
                f"{free / 2**20:,.1f} MB left (run.dir)"
            )
        return f"the {self.name} {end}"


class Restarts:
    """How often a process may be started again: `limit` times in `seconds`. One that always fails
    at once is not to be started for ever."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._times: list[float] = []

    def allowed(self, now: float) -> bool:
        """Whether it may be started again at `now` (seconds of any clock), which then counts."""
        self._times = [time for time in self._times if time > now - self._seconds]
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True


def python_module(arguments: Sequence[str]) -> list[str]:
    """The command `python -m arguments...` without the working directory on its path (-P), nor on
    that of processes that it spawns: a config/ or an envs/ there is the user's, and not ours."""
    return [sys.executable, "-P", "-m", *arguments]


def our_environment() -> dict[str, str]:
    """This process's environment, in which Python finds our modules first, and then the user's on
    PYTHONPATH. An empty entry there would be the working directory, and is left out."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *given])}


def start(
    name: str,
    arguments: Sequence[str],
    log: Path,
    environment: dict[str, str] | None = None,
    launch: Sequence[str] = (),
) -> ChildProcess:
    """Start `python -m arguments...` of this project, its output appended to `log`.

    `launch`: a command that runs it elsewhere.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        log_begin = output.tell()
        process = subprocess.Popen(
            [*launch, *python_module(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**our_environment(), **(environment or {})},
            start_new_session=True,
            preexec_fn=dying_with_parent(),
        )
    return ChildProcess(name, process, log, log_begin)


def stop_all(children: Sequence[ChildProcess], patience: float = 5.0) -> None:
    """End all children: politely, then, after `patience` seconds, by force.

    Nothing of theirs is left.
    """
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


def cause_in(log: Path, begin: int = 0) -> str:
    """What went wrong, in one line, by what a log has from a byte on: a sentence that the process
    ended with ("error: ..."), the exception at the end of its last traceback (of an exception
    group, its last one), or else its last line."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines() if log.exists() else []
    starts = [
        i for i, line in enumerate(lines) if TRACEBACK in line and f"Group {TRACEBACK}" not in line
    ]
    for line in reversed(
        lines[starts[-1] if starts else 0 :]
    ):  # tracebacks that were logged before are of what the process outlived
        if line.startswith(SENTENCE):
            return line.removeprefix(SENTENCE).strip()
    for start in reversed(starts):
        exception = _exception_after(lines, start)
        if exception and SAID_BEFORE not in exception:
            return exception
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _exception_after(lines: Sequence[str], start: int) -> str:
    """The exception of the traceback that begins in a line, behind whatever a logger or an
    exception group puts before its lines."""
    prefix = lines[start].partition(TRACEBACK)[0]
    for line in lines[start + 1 :]:
        text = line.removeprefix(prefix)
        if text.strip(" |") and not text.startswith(" "):
            return text.strip()
    return ""


def log_tail(log: Path, lines: int = 25) -> str:
    """The last traceback or error in a log, or else its last lines."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    beginnings = ("Traceback", "Exception Group Traceback", "error: ")
    starts = [i for i, line in enumerate(text) if line.lstrip(" |+-").startswith(beginnings)]
    tail = text[starts[-1] :] if starts else text
    return "\n".join(f"  {line}" for line in tail[-lines:]) or f"  (nothing in {log})"
