"""Processes that do not outlive the one that started them, however it ends, and what is said of one
that has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


_REASONS = {
    signal.SIGKILL: ", as the system does when memory runs out",
    signal.SIGBUS: ", as happens when the disk or the memory under a file is full",
}


def describe_end(status: int) -> str:
    """The exit status of a process in words: "ended with status 1", "was killed (SIGKILL, ...)".
    Above 128 it is a signal's, as shells and programs that run a command elsewhere have it."""
    number = -status if status < 0 else status - 128
    if number not in {known.value for known in signal.Signals}:
        return f"ended with status {status}" if status >= 0 else f"was killed (signal {number})"
    verb = (
        "was told to end"
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        else "was killed"
    )
    return f"{verb} ({signal.Signals(number).name}{_REASONS.get(number, '')})"


def is_running(pid: int) -> bool:
    """Whether this machine has a process with this id.

    One that has ended, and that nobody has waited for, does not count.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:  # it is somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no Linux, or gone by now
        return sys.platform != "linux"
    return state not in ("Z", "X")


def dying_with_parent() -> Callable[[], None]:
    """A function for the child to call first (Popen's `preexec_fn`, or after a fork): the kernel
    then kills it when this process ends. On systems other than Linux it does nothing.
    """
    parent = os.getpid()
    libc = _load_libc()  # before the fork: the child must not import

    def call_in_child() -> None:
        _tie(libc, parent)

    return call_in_child


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the one with the id `parent`, which started it, ends.

    On systems other than Linux it does nothing.
    """
    _tie(_load_libc(), parent)


def _load_libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    return ctypes.CDLL(None)


def _tie(libc: ctypes.CDLL | None, parent: int) -> None:
    if libc is None:
        return
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
