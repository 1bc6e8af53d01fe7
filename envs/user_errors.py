"""Errors and values of an environment's code, in words that can be sent and logged."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

MAX_MESSAGE_CHARS = 500
"""Longest message of an exception, and longest value, that is repeated in full."""

MAX_TEXT = 1 << 20
"""Characters of a task, an action or an anchor, which travel with the episode."""

_CALLERS = tuple(
    str(Path(__file__).parent.parent / folder) + os.sep for folder in ("actors", "learner")
)
_PACKAGES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
_STANDARD_LIBRARY = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen"}


class UserCodeError(Exception):
    """Code of the environment raised, gave what cannot be used, or took too long.

    The message says which, and where.
    """

    def __init__(self, detail: str, trace: str = "") -> None:
        super().__init__(detail)
        self.trace = trace


def to_printable(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """The text as UTF-8 can say it, at most `limit` characters and a word on the rest."""
    start = text[:limit].encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return start
    return f"{start} ... ({len(text):,} characters)"


def describe_value(value: object) -> str:
    """The `repr` of a value of user code, whatever that does."""
    try:
        return to_printable(repr(value))
    except BaseException:
        return f"a {type(value).__name__} without a repr"


def require_text(name: str, value: object, limit: int | None = MAX_TEXT) -> str:
    """Return what the environment gave as `name`, if it is a text that can be sent.

    Raises UserCodeError if it is none: the learner would refuse the episode, however often it is
    sent.
    """
    if not isinstance(value, str):
        raise UserCodeError(
            f"the environment gave {describe_value(value)} as {name}, where a text belongs"
        )
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserCodeError(
            f"the environment gave {describe_value(text)} as {name}, which UTF-8 cannot say"
        ) from None
    if limit is not None and len(text) > limit:
        raise UserCodeError(
            f"the environment gave {len(text):,} characters as {name}, of which {limit:,} can be "
            "sent"
        )
    return text


def describe_error(error: BaseException, home: str = "") -> str:
    """The exception's name, its message, and the innermost place in the user's own files.

    `home` is the directory of these files. A UserCodeError has all that in its message.
    """
    if isinstance(error, UserCodeError):
        return str(error)
    try:
        message = to_printable(str(error))
    except BaseException:
        message = "(its str() raises)"
    description = f"{type(error).__name__}: {message}"
    if isinstance(error, BaseExceptionGroup):
        description += f"; the first one is {describe_error(error.exceptions[0], home)}"
    where = find_user_frame(locate_steps(traceback.walk_tb(error.__traceback__)), home)
    if where:
        return f"{description} ({where})"
    return description


def source_directory(environment: object) -> str:
    """The directory of the file that defines an environment; "" where there is none."""
    try:
        return str(Path(inspect.getfile(type(environment))).parent)
    except (TypeError, OSError):
        return ""


def find_user_frame(frames: Iterable[tuple[str, int, str]], home: str = "") -> str:
    """The innermost of (file, line, function) that is the user's own, as file:line in function.

    It is one below `home`, else one of no installed package, else any that is not the standard
    library's. Frames of what calls environments are left out; "" if none remains.
    """
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
            return to_printable(f"{_short(file)}:{line} in {function}")
    return ""


def timeout_error(thread: threading.Thread, seconds: float, home: str = "") -> UserCodeError:
    """The error for a thread whose environment does not answer.

    It names the place in the user's own files where the thread is now.
    """
    message = f"the environment took more than {seconds:g} s (actor.step_timeout)"
    frames = sys._current_frames()  # noqa: SLF001  documented by this name
    innermost = frames.get(thread.ident or 0)  # 0 is no thread's
    if innermost is not None:
        steps = list(traceback.walk_stack(innermost))
        where = find_user_frame(locate_steps(reversed(steps)), home)
        if where:
            message += f", at {where}"
    return UserCodeError(message)


def locate_steps(steps: Iterable[tuple[FrameType, int]]) -> Iterator[tuple[str, int, str]]:
    """Yield (file, line, function) of each frame."""
    for frame, line in steps:
        yield frame.f_code.co_filename, line, frame.f_code.co_name


def _is_below(file: str, directories: set[str]) -> bool:
    return file.startswith(tuple(directories))


def _short(file: str) -> str:
    """A file below the working directory without that directory."""
    return file.removeprefix(os.getcwd() + os.sep)
