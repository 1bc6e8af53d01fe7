"""Handle Ctrl-C and the signals that mean the same: SIGTERM, and SIGHUP of a closed terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


def interrupting_signals() -> list[signal.Signals]:
    """The signals that mean Ctrl-C here; under nohup, SIGHUP is ignored and not among them."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def take_signals_as_ctrl_c() -> None:
    """Have all interrupting signals raise KeyboardInterrupt in the main thread."""
    for number in interrupting_signals():
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Have each interrupting signal call `handle` while inside, in a running event loop.

    Signals are the main thread's: in another one, of a program that runs us beside its own work,
    they keep the meaning that it gives them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in interrupting_signals()}
    for number in previous:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
