"""Running code of others: in a thread of the episode's own, whatever it raises put into words that can be sent and logged."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

MAX_WORDS = 500
"""Characters of what an exception says, or of a value that is shown."""

TRACEBACK_FRAMES = 12
"""How many of the innermost frames of a traceback the log gets."""

_HERE = str(Path(__file__).parent)
_PACKAGES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
_STANDARD_LIBRARY = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen"}


class UserCodeFailed(Exception):
    """Code of the environment raised, gave what cannot be used, or took too long; the message says which, and where."""

    def __init__(self, detail: str, trace: str = "") -> None:
        super().__init__(detail)
        self.trace = trace


def printable(text: str, limit: int = MAX_WORDS) -> str:
    """The text as UTF-8 can say it, at most `limit` characters and a word on the rest."""
    cut = text[:limit].encode("utf-8", "backslashreplace").decode()
    return cut if len(text) <= limit else f"{cut} ... ({len(text):,} characters)"


def describe_value(value: object) -> str:
    """The `repr` of a value of user code, whatever that does."""
    try:
        return printable(repr(value))
    except BaseException:
        return f"a {type(value).__name__} without a repr"


def describe_error(error: BaseException, home: str = "") -> str:
    """The exception's name, its words, and the innermost place in the user's own files (`home`: their directory)."""
    try:
        words = printable(str(error))
    except BaseException:
        words = "(its str() raises)"
    said = f"{type(error).__name__}: {words}"
    if isinstance(error, BaseExceptionGroup):
        said += f"; the first one is {describe_error(error.exceptions[0], home)}"
    steps = traceback.walk_tb(error.__traceback__)
    where = own_frame(((frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in steps), home)
    return f"{said} ({where})" if where else said


def home_of(environment: object) -> str:
    """The directory of the file that defines an environment; "" where there is none."""
    try:
        return str(Path(inspect.getfile(type(environment))).parent)
    except (TypeError, OSError):
        return ""


def own_frame(frames: Iterable[tuple[str, int, str]], home: str = "") -> str:
    """The innermost of (file, line, function) that is the user's own, as file:line in function: one below `home`, else one of no
    installed package, else any that is not the standard library's. Frames of this folder are left out; "" if none remains."""
    known = [frame for frame in frames if not frame[0].startswith(_HERE)]
    outside = [frame for frame in known if not _is_below(frame[0], _STANDARD_LIBRARY) or _is_below(frame[0], _PACKAGES)]
    others = [frame for frame in outside if not _is_below(frame[0], _PACKAGES)]
    at_home = [frame for frame in outside if home and frame[0].startswith(home)]
    if not _is_below(home, _PACKAGES):
        at_home = [frame for frame in at_home if frame in others]
    for candidates in (at_home, others, outside, known):
        if candidates:
            file, line, function = candidates[-1]
            return printable(f"{_short(file)}:{line} in {function}")
    return ""


def _is_below(file: str, directories: set[str]) -> bool:
    return file.startswith(tuple(directories))


def _short(file: str) -> str:
    """A file below the working directory without that directory."""
    return file.removeprefix(os.getcwd() + os.sep)


class EpisodeThread:
    """The thread in which everything of one episode's environment runs, one call after another, since much is bound to the thread that made
    it (SQLite's connections, event loops). One that hangs holds up neither others, as it would in a pool, nor the end of the process."""

    def __init__(self, home: str, timeout_seconds: float) -> None:
        self._home = home
        self._timeout_seconds = timeout_seconds
        self._calls: queue.SimpleQueue[tuple[Callable, tuple, asyncio.Future] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="environment")
        self._thread.start()
        self.abandoned = False
        """Whether nobody waits for it any more: a call took longer than the timeout, or the episode was broken off."""

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        """What the function returns. UserCodeFailed for whatever it raises, and if it takes too long: then it is left to itself."""
        result = self._loop.create_future()
        self._calls.put((function, args, result))
        await asyncio.wait({result}, timeout=self._timeout_seconds)
        if not result.done():
            self.abandoned = True
            raise UserCodeFailed(f"the environment took more than {self._timeout_seconds:g} s (actor.step_timeout){self._where()}")
        failed, value = result.result()
        if failed:
            raise value
        return value

    def end(self, last: Callable[[], None]) -> asyncio.Future[tuple[bool, Any]]:
        """Call `last` and end the thread, as soon as the call under way returns: (whether `last` failed, how)."""
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
            except UserCodeFailed as error:
                outcome = (True, error)
            except BaseException as error:
                outcome = (True, self._failure(error))
            try:
                self._loop.call_soon_threadsafe(_set, result, outcome)
            except RuntimeError:  # the loop has ended, and nobody waits; what holds something open is still closed
                continue

    def _failure(self, error: BaseException) -> UserCodeFailed:
        frames = traceback.format_tb(error.__traceback__, limit=-TRACEBACK_FRAMES)
        return UserCodeFailed(describe_error(error, self._home), printable("".join(frames), 10 * MAX_WORDS))

    def _where(self) -> str:
        """Where the thread is now."""
        frame = sys._current_frames().get(self._thread.ident)
        where = own_frame(reversed([(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in _callers(frame)]), self._home)
        return f", at {where}" if where else ""


def _callers(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _set(result: asyncio.Future, outcome: tuple[bool, Any]) -> None:
    if not result.done():
        result.set_result(outcome)
