"""Waiting for an engine that may make no progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class NoProgressError(Exception):
    """The engine makes no progress with a turn."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the engine made no progress for {seconds:g} s (control.stall_seconds)")


async def await_with_progress_timeout(
    call: Awaitable[T],
    seen: Callable[[], float],
    seconds: float,
    failing: asyncio.Future[Exception] | None = None,
) -> T:
    """The result of `call`.

    Raises TurnStuck, with the call cancelled, once `seen()`, the time of the last progress by the
    monotonic clock, is so many seconds ago; or the result of `failing`, once it has one. (Not
    asyncio.wait_for, which in Python 3.11 loses a cancellation that meets a result.)
    """
    task = asyncio.ensure_future(call)
    awaited = {task} if failing is None else {task, failing}
    try:
        while not task.done():
            left = seen() + seconds - time.monotonic()
            if left <= 0:
                raise NoProgressError(seconds)
            await asyncio.wait(awaited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if failing is not None and failing.done():
                raise failing.result()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
