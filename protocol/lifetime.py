"""Processes that end with the one that started them, and words for how a process ended."""

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
    """Say how a process with an exit status ended: "ended with status 1".

    Below 0 it was a signal, as Python has it: "was killed (SIGKILL, ...)". Above 128, too, as
    shells and programs that run a command elsewhere have it.
    """
    number = status - 128
    if status < 0:
        number = -status
    known_signals = {known.value for known in signal.Signals}
    if number in known_signals:
        return _describe_signal(signal.Signals(number))
    if status < 0:
        return f"was killed (signal {number})"
    return f"ended with status {status}"


def _describe_signal(number: signal.Signals) -> str:
    verb = "was killed"
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        verb = "was told to end"
    return f"{verb} ({number.name}{_REASONS.get(number, '')})"


def is_running(pid: int) -> bool:
    """Say whether this machine has a process with this id.

    A process that has ended, and that nobody has waited for, does not count.
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
    """Make a function for a child to call first: the kernel kills it when this process ends.

    It is for Popen's `preexec_fn`, or for calling after a fork. On systems other than Linux it
    does nothing.
    """
    parent = os.getpid()
    libc = _load_libc()  # before the fork: the child must not import

    def call_in_child() -> None:
        _die_with(libc, parent)

    return call_in_child


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, the process that started it, ends.

    On systems other than Linux it does nothing.
    """
    _die_with(_load_libc(), parent)


def _load_libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    return ctypes.CDLL(None)


def _die_with(libc: ctypes.CDLL | None, parent: int) -> None:
    if libc is None:
        return
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
