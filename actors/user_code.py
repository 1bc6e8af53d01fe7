"""Running code of others, in a thread of the episode's own.

Whatever it raises is put into words (envs/user_errors.py).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

from envs.user_errors import (
    MAX_MESSAGE_CHARS,
    UserCodeError,
    describe_error,
    timeout_error,
    to_printable,
)

TRACEBACK_FRAMES = 12
"""Innermost frames of a traceback that the log gets."""


class EpisodeThread:
    """The thread in which everything of one episode's environment runs, one call after another.

    Much is bound to the thread that made it (SQLite's connections, event loops). A thread that
    hangs holds up neither others, as it would in a pool, nor the end of the process.
    """

    def __init__(self, home: str, timeout_seconds: float) -> None:
        self._home = home
        self._timeout_seconds = timeout_seconds
        self._calls: queue.SimpleQueue[tuple[Callable, tuple, asyncio.Future] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="environment")
        self._thread.start()
        self.abandoned = False
        """Nobody waits for it any more.

        A call took longer than the timeout, or the episode was broken off.
        """

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Run a function in the thread, and return what it returns.

        Raises UserCodeError for whatever it raises, and if it takes too long. Then it is left to
        itself.
        """
        result = self._loop.create_future()
        self._calls.put((function, args, result))
        await asyncio.wait({result}, timeout=self._timeout_seconds)
        if not result.done():
            self.abandoned = True
            raise timeout_error(self._thread, self._timeout_seconds, self._home)
        failed, value = result.result()
        if failed:
            raise value
        return value

    def end(self, last: Callable[[], None]) -> asyncio.Future[tuple[bool, Any]]:
        """Call `last` and end the thread, as soon as the call under way returns.

        The result is whether `last` failed, and how.
        """
        ended = self._loop.create_future()
        self._calls.put((last, (), ended))
        self._calls.put(None)
        return ended

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            function, args, result = call
            try:
                outcome = (False, function(*args))
            except BaseException as error:
                outcome = (True, to_user_code_error(error, self._home))
            try:
                self._loop.call_soon_threadsafe(_set, result, outcome)
            except RuntimeError:
                # The loop has ended, and nobody waits; what is held open is still closed.
                continue


def to_user_code_error(error: BaseException, home: str) -> UserCodeError:
    """Put whatever code of the environment raised into words."""
    if isinstance(error, UserCodeError):
        return error
    frames = traceback.format_tb(error.__traceback__, limit=-TRACEBACK_FRAMES)
    return UserCodeError(
        describe_error(error, home), to_printable("".join(frames), 10 * MAX_MESSAGE_CHARS)
    )


def _set(result: asyncio.Future, outcome: tuple[bool, Any]) -> None:
    if not result.done():
        result.set_result(outcome)
