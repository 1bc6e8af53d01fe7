"""The code of a harness, in a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from actors.endpoint import HarnessEnd, Session
from actors.user_code import to_user_code_error
from envs.base import Split
from envs.user_errors import UserCodeError, find_user_frame, locate_steps

MISSING_OPENAI = (
    "a harness needs the package openai on every machine with actors: pip install openai"
)


def require_openai() -> Any:
    """Import the package openai, which takes a second; UserCodeError where it is missing."""
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise UserCodeError(MISSING_OPENAI) from None


def build_client(session: Session) -> Any:
    """Make an `openai.AsyncOpenAI` that speaks for one episode alone.

    It neither retries nor gives up by itself: the actor knows how long a turn takes. UserCodeError
    where the package is missing.
    """
    openai = require_openai()
    # No proxy of the machine's is between a process and itself, and no certificate.
    http = openai.DefaultAsyncHttpxClient(trust_env=False, verify=False)
    return openai.AsyncOpenAI(
        base_url=session.base_url,
        api_key=session.key,
        http_client=http,
        max_retries=0,
        timeout=None,
    )


def probe_harness(harness: Any, split: Split, index: int) -> None:
    """Make a task, and load the package of the client; UserCodeError where it is missing."""
    require_openai()
    harness.task(split, index)


class HarnessRun:
    """A harness that plays one task; its session gets the end."""

    def __init__(self, harness: Any, task: Any, session: Session, home: str) -> None:
        self._harness = harness
        self._task = task
        self._session = session
        self._home = home
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task | None = None
        self._is_canceled = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="harness")
        self._thread.start()

    def cancel(self) -> None:
        """Cancel the harness, as soon as it awaits something."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._cancel)

    def wait(self) -> None:
        """Wait until the harness has let go of what it holds open."""
        self._thread.join()

    def where(self) -> str:
        """Say where in the user's own files the harness is now; "" where nobody knows."""
        frames = sys._current_frames()  # noqa: SLF001  documented by this name
        innermost = frames.get(self._thread.ident or 0)
        steps = []
        if innermost is not None:
            steps = list(reversed(list(traceback.walk_stack(innermost))))
        return find_user_frame([*locate_steps(steps), *_locate_awaits(self._main)], self._home)

    def _cancel(self) -> None:
        self._is_canceled = True
        if self._main is not None:
            self._main.cancel()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                end = HarnessEnd(value=runner.run(self._play()))
        except BaseException as error:
            end = HarnessEnd(error=to_user_code_error(error, self._home))
        self._session.end(end)

    async def _play(self) -> Any:
        self._main = asyncio.current_task()
        if self._is_canceled:
            raise asyncio.CancelledError
        async with build_client(self._session) as client:
            return await self._harness.episode(self._task, client)


def _locate_awaits(task: asyncio.Task | None) -> Iterator[tuple[str, int, str]]:
    """(file, line, function) of each coroutine that waits for the next one."""
    waiting: Any = None
    if task is not None:
        waiting = task.get_coro()
    while getattr(waiting, "cr_frame", None) is not None:
        frame = waiting.cr_frame
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        waiting = waiting.cr_await


def describe_wait(run: HarnessRun, seconds: float) -> UserCodeError:
    """Make the error of a harness that does nothing for too long."""
    where = run.where()
    place = f", at {where}" if where else ""
    return UserCodeError(
        f"the harness neither asked for a turn nor ended within {seconds:g} s "
        f"(actor.step_timeout){place}"
    )
