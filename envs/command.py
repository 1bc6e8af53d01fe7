"""A harness in a process of its own, in any language: a command line that plays one task.

It finds all that it needs in its environment (`describe_process`), and writes its reward into a
file, or posts it. It is killed with its process group when the episode ends, however that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from envs.base import EnvironmentFailure, Split
from envs.harness import DEFAULT_MAX_TURNS, Outcome
from envs.user_errors import MAX_MESSAGE_CHARS, to_printable
from protocol.lifetime import describe_end, dying_with_parent

MODEL = "policy"

MAX_TASK_BYTES = 100_000
"""Bytes of a task: Linux lets a variable of a process have little more."""


class _Reward(msgspec.Struct, forbid_unknown_fields=True):
    """What a command may write as its reward, in place of a number."""

    reward: float
    success: bool | None = None
    truncated: bool = False
    scores: dict[str, float] = {}


class CommandHarness:
    """Tasks that are lines of a file, or numbers, each played by a process."""

    name = "harness"

    def __init__(
        self,
        command: str = "",
        data: str = "",
        tasks: int = 10_000,
        held_out_tasks: int = 200,
        max_turns: int = DEFAULT_MAX_TURNS,
    ) -> None:
        self._words = _split_command(command)
        self.max_turns = max_turns
        self._tasks = _number_tasks(tasks, held_out_tasks)
        if data:
            self._tasks = _read_tasks(Path(data), held_out_tasks)

    def size(self, split: Split) -> int:
        """Number of tasks in a split."""
        return len(self._tasks[split])

    def task(self, split: Split, index: int) -> str:
        """The line of a task, or its number."""
        return self._tasks[split][index]

    async def episode(self, task: str, client: Any) -> Outcome | None:
        """Run the command; None where it wrote no reward, as it may have posted one."""
        with (
            tempfile.TemporaryDirectory(prefix="harness-") as directory,
            tempfile.TemporaryFile() as output,
        ):
            reward_file = Path(directory) / "reward"
            variables = describe_process(task, client, reward_file)
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
                preexec_fn=dying_with_parent(),
            )
            try:
                status = await process.wait()
            finally:
                await asyncio.shield(_kill(process))
            if status:
                raise EnvironmentFailure(
                    f"the command {describe_end(status)}; its last words: {_read_end(output)}"
                )
            return _read_reward(reward_file)


def describe_process(task: str, client: Any, reward_file: Path) -> dict[str, str]:
    """Return the variables by which a command knows its task, its endpoint and its reward's file.

    No proxy of the machine's stands between it and the endpoint.
    """
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {
        "OPENAI_BASE_URL": str(client.base_url).rstrip("/"),
        "OPENAI_API_KEY": client.api_key,
        "OPENAI_MODEL": MODEL,
        "FORAY_TASK": task,
        "FORAY_REWARD_FILE": str(reward_file),
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


async def _kill(process: Process) -> None:
    """Kill a command with all that it has started, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _read_end(output: IO[bytes]) -> str:
    """Read the last words that a command has said."""
    length = output.seek(0, os.SEEK_END)
    output.seek(max(0, length - MAX_MESSAGE_CHARS))
    return to_printable(output.read().decode(errors="replace").strip())


def _read_reward(file: Path) -> Outcome | None:
    """Read what a command wrote; EnvironmentFailure for what is no reward."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        written = msgspec.json.decode(text, type=float | _Reward)
    except msgspec.MsgspecError as error:
        said = to_printable(text.decode(errors="replace"))
        raise EnvironmentFailure(
            f"the command wrote {said!r} as its reward, where a number or "
            f'{{"reward": NUMBER, "success": true}} belongs: {error}'
        ) from None
    if isinstance(written, _Reward):
        return Outcome(written.reward, written.success, written.truncated, written.scores)
    return Outcome(written)


def _split_command(command: str) -> list[str]:
    """Split a command line as a shell does; ValueError for one that cannot be run here."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"env.settings.command: {command!r}: {error}") from None
    if not words:
        raise ValueError(
            'env.settings.command: the command line of your agent belongs there: "python agent.py"'
        )
    if shutil.which(words[0]) is None:
        raise ValueError(
            f"env.settings.command: there is no program {words[0]!r} on {os.uname().nodename}"
        )
    return words


def _number_tasks(tasks: int, held_out_tasks: int) -> Mapping[str, list[str]]:
    return {
        "train": list(map(str, range(tasks))),
        "held_out": list(map(str, range(tasks, tasks + held_out_tasks))),
    }


def _read_tasks(file: Path, held_out_tasks: int) -> Mapping[str, list[str]]:
    """Read a task a line, of which the last are held out; ValueError for what is no such file."""
    setting = "env.settings.data"
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or "\0" in line or len(line.encode()) > MAX_TASK_BYTES:
            raise ValueError(
                f"{setting}: line {number} of {file} has to be a task of 1 to {MAX_TASK_BYTES:,} "
                "bytes"
            )
    trained = len(lines) - held_out_tasks
    if trained < 0:
        raise ValueError(
            f"env.settings.held_out_tasks: {held_out_tasks}, and {file} has {len(lines)} tasks"
        )
    return {"train": lines[:trained], "held_out": lines[trained:]}
