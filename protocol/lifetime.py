"""Processes that do not outlive the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def dying_with_parent() -> Callable[[], None]:
    """A function for the child to call first (Popen's `preexec_fn`, or after a fork): the kernel then kills it when this
    process ends. On systems other than Linux it does nothing.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before the fork: the child must not import

    def call_in_child() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return call_in_child
