"""Python runs this first in every process that has its directory on PYTHONPATH: a process that is
killed in the middle of something.

DIES="module:name when count file": the process in which the callable `name` of `module` begins
("before") or has ended ("after") for the count-th time kills itself with SIGKILL, once in all:
`file` says that it has been done. Killed from outside, it would be by chance.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import inspect
import os
import signal
import sys
from itertools import count
from types import ModuleType
from typing import Any

TARGET, WHEN, COUNT, DONE = os.environ.get("DIES", ": - 0 -").split()
MODULE, _, NAME = TARGET.partition(":")
_calls = count(1)


def _die(now: str, number: int) -> None:
    if now != WHEN or number < int(COUNT):
        return
    try:
        os.close(os.open(DONE, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(function: Any) -> Any:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        number = next(_calls)
        _die("before", number)
        result = function(*arguments, **named)
        _die("after", number)
        return result

    @functools.wraps(function)
    async def call_async(*arguments: Any, **named: Any) -> Any:
        number = next(_calls)
        _die("before", number)
        result = await function(*arguments, **named)
        _die("after", number)
        return result

    return call_async if inspect.iscoroutinefunction(function) else call


class _Patches(importlib.abc.MetaPathFinder):
    """Puts `_dying` around the callable once its module has been executed, before anybody has it
    from there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            *holders, last = NAME.split(".")
            holder = functools.reduce(getattr, holders, module)
            setattr(holder, last, _dying(getattr(holder, last)))

        spec.loader.exec_module = execute_and_patch
        return spec


if MODULE:
    sys.meta_path.insert(0, _Patches())
