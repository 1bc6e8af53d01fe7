"""When, where and by which command a run was started, and resumed: `starts.jsonl`."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from config.options import SECRETS, this_command
from config.resolve import full_name
from protocol.files import atomic_write
from protocol.machine import available_bytes, available_cores
from telemetry.probes.clocks import utc_now
from telemetry.summary import package_versions

STARTS_FILE = "starts.jsonl"
HIDDEN = "(hidden)"


class Start(msgspec.Struct, frozen=True):
    """One start of a run."""

    time: str
    """When, in UTC, as ISO 8601 has it."""
    command: str
    """The command line, without secrets."""
    host: str
    system: str
    cores: int
    memory_bytes: float
    """Memory that was free."""
    versions: dict[str, str]
    """Versions of Python and the main packages."""
    recipes: list[str] = []
    """Recipes of the settings."""
    changes: str = ""
    """Settings that a resume changed."""
    gpus: list[str] = []
    """Name and memory of each GPU that the machine shows; none where vLLM is the one for CPUs."""


def describe_start(
    arguments: Sequence[str], recipes: Sequence[str], changes: str, gpus: Sequence[str] = ()
) -> Start:
    """The start of a run by this process, with the arguments of its command line."""
    return Start(
        time=utc_now(),
        command=f"{this_command()} {shlex.join(hide_secrets(arguments))}".strip(),
        host=os.uname().nodename,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=available_cores(),
        memory_bytes=available_bytes(),
        versions={"python": platform.python_version()} | package_versions(),
        recipes=list(recipes),
        changes=changes,
        gpus=list(gpus),
    )


def hide_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line, in which nobody can read the value of a secret setting."""
    shown = []
    is_secret = False
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        names_secret = argument.startswith("--") and full_name(name) in SECRETS
        if is_secret:
            shown.append(HIDDEN)
        elif names_secret and equals:
            shown.append(f"--{name}={HIDDEN}")
        else:
            shown.append(argument)
        is_secret = names_secret and not equals
    return shown


def record_start(run_dir: Path, start: Start) -> None:
    """Add a start to those of a run."""
    file = run_dir / STARTS_FILE
    lines = [msgspec.json.encode(known) for known in (*read_starts(run_dir), start)]
    atomic_write(file, b"\n".join(lines) + b"\n", "run.dir")


def read_starts(run_dir: Path) -> list[Start]:
    """The starts of a run, the first one first; none where nobody has recorded them."""
    try:
        lines = (run_dir / STARTS_FILE).read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Start) for line in lines]
    except (OSError, msgspec.DecodeError):
        return []
