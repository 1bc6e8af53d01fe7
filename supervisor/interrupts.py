"""Ctrl-C, and the signals that mean the same: SIGTERM, and SIGHUP of a terminal that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


def interrupting_signals() -> list[signal.Signals]:
    """The signals that mean Ctrl-C here. Under nohup SIGHUP is ignored, and means nothing."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def take_signals_as_ctrl_c() -> None:
    """Have all of them raise KeyboardInterrupt in the main thread."""
    for number in interrupting_signals():
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """While inside, in a running event loop of the main thread, each of them calls `handle`."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in interrupting_signals()}
    for number in before:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
