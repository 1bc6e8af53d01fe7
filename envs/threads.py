"""Calls of an environment in a thread of their own, as in an actor, for code that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def call_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread that nothing else runs in; returns or raises what it does.

    What works in the main thread alone (signal handlers), or in the thread that made it alone
    (SQLite's connections), fails here as it does in a run.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="environment").start()
    return outcome.result()
