"""Child processes that end together.

Each is in a session of its own, and the kernel kills it if the supervisor dies.
"""

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

MEMORY_SETTINGS = {
    "learner": "learner.microbatch_tokens, or set learner.gradient_checkpointing",
    "engine": "engine.kv_cache_gb or engine.max_sequences",
    "actors": "actor.count",
}
"""Process -> the settings to lower where it has not enough memory."""

TRACEBACK = "Traceback (most recent call last)"

LITTLE_ROOM_BYTES = 1 << 20
"""Disk space below which a process may not have been able to log its failure."""

ERROR_PREFIX = "error: "
"""Beginning of the last line of a process that ends with a sentence and not with a traceback."""

REFERS_TO_EARLIER_ERROR = "See root cause above"
"""Text of an exception of vLLM's server that repeats an earlier one, and says no more."""


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
        """Raise ChildFailed, with cause and log, if the process ended in an error."""
        if self.ended and self.process.returncode != 0:
            raise ChildFailed(f"{self.failure()}\nits log: {self.log}")

    def failure(self) -> str:
        """Say in one line why the process has ended."""
        end = describe_end(self.process.returncode)
        if end.startswith("was killed (SIGKILL"):
            return f"the {self.name} {end}{self._memory_advice()}"
        cause = cause_in(self.log, self.log_begin)
        if end.startswith("ended with") and cause:
            return f"the {self.name} failed: {cause}"
        free_bytes = shutil.disk_usage(self.log.parent).free
        if free_bytes < LITTLE_ROOM_BYTES:
            return (
                f"the {self.name} {end}, and could not say why: {self.log.parent} has "
                f"{free_bytes / 2**20:,.1f} MB left (run.dir)"
            )
        return f"the {self.name} {end}"

    def _memory_advice(self) -> str:
        settings = MEMORY_SETTINGS.get(self.name.partition("-")[0])
        if settings is None:
            return ""
        return f"; if it did, lower {settings}"


class RestartLimit:
    """A limit on restarts: `limit` of them in `window_s` seconds.

    A process that always fails at once is not to be started for ever.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._restarts_s: list[float] = []

    def allow(self, now_s: float) -> bool:
        """Count a restart at `now_s` (seconds of any clock) if the limit allows one more."""
        self._restarts_s = [
            time_s for time_s in self._restarts_s if time_s > now_s - self._window_s
        ]
        if len(self._restarts_s) >= self._limit:
            return False
        self._restarts_s.append(now_s)
        return True


def python_module(arguments: Sequence[str]) -> list[str]:
    """The command `python -P -m arguments...`.

    With -P the working directory is not on its path, nor on that of processes that it spawns: a
    config/ or an envs/ there is the user's, and not ours.
    """
    return [sys.executable, "-P", "-m", *arguments]


def our_environment() -> dict[str, str]:
    """Environment variables by which Python finds our modules before the user's PYTHONPATH.

    An empty entry there would be the working directory, and is left out.
    """
    user_path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *user_path])}


def spawn(
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


def stop_all(children: Sequence[ChildProcess], patience_s: float = 5.0) -> None:
    """End all children and what they started: politely, and by force after `patience_s`."""
    for child in children:
        if not child.ended:
            child.signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
    for child in children:
        child.signal(signal.SIGKILL)  # what it started, too, even if it has ended itself
        child.process.wait()


def cause_in(log: Path, begin: int = 0) -> str:
    """Name in one line what a process ended of, by what its log has from byte `begin` on.

    It is what `error_in` finds, or else the last line that speaks of an error, or the last one.
    """
    error = error_in(log, begin)
    if error:
        return error
    lines = [line.strip() for line in _read_text(log, begin).splitlines() if line.strip()]
    speaking = [line for line in lines if "error" in line.lower()]
    return next(reversed(speaking or lines), "")


def error_in(log: Path, begin: int = 0) -> str:
    """The error of a log from byte `begin` on, in one line; "" if it has none.

    It is the sentence that the process ended with ("error: ..."), or the exception at the end of
    the last traceback (in an exception group, of its last member).
    """
    lines = _read_text(log, begin).splitlines()
    tracebacks = [
        number
        for number, line in enumerate(lines)
        if TRACEBACK in line and f"Group {TRACEBACK}" not in line
    ]
    # The process outlived what it logged before its last traceback.
    last_traceback = max(tracebacks, default=0)
    for line in reversed(lines[last_traceback:]):
        if line.startswith(ERROR_PREFIX):
            return line.removeprefix(ERROR_PREFIX).strip()
    for traceback in reversed(tracebacks):
        exception = _exception_after(lines, traceback)
        if exception and REFERS_TO_EARLIER_ERROR not in exception:
            return exception
    return ""


def _exception_after(lines: Sequence[str], traceback: int) -> str:
    """The exception of the traceback that begins in line number `traceback`.

    A logger or an exception group may have put a prefix before its lines.
    """
    prefix = lines[traceback].partition(TRACEBACK)[0]
    for line in lines[traceback + 1 :]:
        text = line.removeprefix(prefix)
        if text.strip(" |") and not text.startswith(" "):
            return text.strip()
    return ""


def log_tail(log: Path, max_lines: int = 25) -> str:
    """The last traceback or error in a log, or else its last lines."""
    lines = _read_text(log).splitlines()
    beginnings = ("Traceback", "Exception Group Traceback", ERROR_PREFIX)
    errors = [
        number for number, line in enumerate(lines) if line.lstrip(" |+-").startswith(beginnings)
    ]
    last_error = max(errors, default=0)
    tail = lines[last_error:][-max_lines:]
    return "\n".join(f"  {line}" for line in tail) or f"  (nothing in {log})"


def _read_text(log: Path, begin: int = 0) -> str:
    """A log's text from a byte on; "" if there is no log."""
    if not log.exists():
        return ""
    return log.read_bytes()[begin:].decode(errors="replace")
