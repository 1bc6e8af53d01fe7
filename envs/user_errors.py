"""What code of an environment raises or gives, in words that can be sent and logged, whatever it
is."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path

MAX_WORDS = 500
"""Characters of what an exception says, or of a value that is shown."""

_CALLERS = tuple(
    str(Path(__file__).parent.parent / folder) + os.sep for folder in ("actors", "learner")
)
_PACKAGES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
_STANDARD_LIBRARY = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen"}


class UserCodeFailed(Exception):
    """Code of the environment raised, gave what cannot be used, or took too long; the message says
    which, and where."""

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
    """The exception's name, its words, and the innermost place in the user's own files (`home`:
    their directory)."""
    try:
        words = printable(str(error))
    except BaseException:
        words = "(its str() raises)"
    said = f"{type(error).__name__}: {words}"
    if isinstance(error, BaseExceptionGroup):
        said += f"; the first one is {describe_error(error.exceptions[0], home)}"
    steps = traceback.walk_tb(error.__traceback__)
    where = own_frame(
        ((frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in steps), home
    )
    return f"{said} ({where})" if where else said


def home_of(environment: object) -> str:
    """The directory of the file that defines an environment; "" where there is none."""
    try:
        return str(Path(inspect.getfile(type(environment))).parent)
    except (TypeError, OSError):
        return ""


def own_frame(frames: Iterable[tuple[str, int, str]], home: str = "") -> str:
    """The innermost of (file, line, function) that is the user's own, as file:line in function: one
    below `home`, else one of no installed package, else any that is not the standard library's.
    Frames of what calls environments are left out; "" if none remains."""
    known = [frame for frame in frames if not frame[0].startswith(_CALLERS)]
    outside = [
        frame
        for frame in known
        if not _is_below(frame[0], _STANDARD_LIBRARY) or _is_below(frame[0], _PACKAGES)
    ]
    others = [frame for frame in outside if not _is_below(frame[0], _PACKAGES)]
    at_home = [frame for frame in outside if home and frame[0].startswith(home)]
    if not _is_below(home, _PACKAGES):
        at_home = [frame for frame in at_home if frame in others]
    for candidates in (at_home, others, outside, known):
        if candidates:
            file, line, function = candidates[-1]
            return printable(f"{_short(file)}:{line} in {function}")
    return ""


def took_too_long(thread: threading.Thread, seconds: float, home: str = "") -> UserCodeFailed:
    """The error for a thread whose environment does not answer; it names the place in the user's
    own files where the thread is now."""
    innermost = sys._current_frames().get(thread.ident)
    steps = list(traceback.walk_stack(innermost)) if innermost is not None else []
    where = own_frame(
        ((frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in reversed(steps)),
        home,
    )
    return UserCodeFailed(
        f"the environment took more than {seconds:g} s "
        f"(actor.step_timeout){', at ' if where else ''}{where}"
    )


def _is_below(file: str, directories: set[str]) -> bool:
    return file.startswith(tuple(directories))


def _short(file: str) -> str:
    """A file below the working directory without that directory."""
    return file.removeprefix(os.getcwd() + os.sep)
