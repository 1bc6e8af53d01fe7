"""The state of a run in its directory: `status.json`.

It is for the dashboard and for who looks from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from protocol.files import atomic_write
from protocol.lifetime import is_running
from telemetry.metrics_schema import successes_by_set
from telemetry.probes.clocks import utc_now
from telemetry.sinks.metrics_file import Record
from telemetry.state import RunState

STATUS_FILE = "status.json"

EVERY_SECONDS = 1.0
"""How long a status holds before it is written anew."""


def build_status(state: RunState, now: float) -> dict[str, Any]:
    """Describe for JSON what a run does, waits for and has dropped, and its last evaluation."""
    phase = state.phase
    return {
        "phase": phase.name,
        "phase_seconds": round(now - phase.started, 1),
        "done": phase.done,
        "of": phase.of,
        "figures": dict(phase.figures),
        "seconds_left": phase.seconds_left(now),
        "waits": [
            {"process": wait.source, "what": wait.what, "seconds": round(wait.seconds, 1)}
            for wait in state.long_waits(now)
        ],
        "dropped": state.drops_so_far(),
        "warnings": {
            **state.signs,
            **state.failures,
            **state.advice,
        },
        "evaluation": _describe_evaluation(state.evaluations),
    }


def _describe_evaluation(evaluations: Sequence[Record]) -> dict[str, Any] | None:
    """The last evaluation: of which update, its success, and that of each named set."""
    if not evaluations:
        return None
    last = evaluations[-1]
    return {
        "update": last["update"],
        "success": last.get("success"),
        "sets": successes_by_set(last),
    }


class StatusFile:
    """Writes the status of a run once a second; removes it when the run ends.

    One that is killed leaves it behind.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / STATUS_FILE
        self._written: float | None = None

    def write(self, state: RunState, now: float) -> None:
        """Write the status at `now`, seconds of a monotonic clock, if none was written just now."""
        if self._written is not None and now - self._written < EVERY_SECONDS:
            return
        self._written = now
        status = {**_writer(), **build_status(state, now)}
        with contextlib.suppress(OSError):
            # With a full disk, the run ends where it needs the disk, not here.
            atomic_write(self._path, msgspec.json.encode(status))

    def remove(self) -> None:
        """Remove the file: nothing holds any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _writer() -> dict[str, Any]:
    """The time at which a status is written, and this process, which writes it."""
    return {"written": utc_now(), "host": socket.gethostname(), "pid": os.getpid()}


class _Writer(msgspec.Struct):
    """The process that wrote a status."""

    host: str
    pid: Annotated[int, msgspec.Meta(gt=0)]


def read_status(run_dir: Path) -> dict[str, Any]:
    """The status of a run as it was written last; empty if there is none, or its writer is gone.

    Of a process on another machine only `written` tells whether it may still be there.
    """
    try:
        text = (run_dir / STATUS_FILE).read_bytes()
        writer = msgspec.json.decode(text, type=_Writer)
    except (OSError, msgspec.DecodeError):
        return {}
    if writer.host == socket.gethostname() and not is_running(writer.pid):
        return {}
    return msgspec.json.decode(text)
