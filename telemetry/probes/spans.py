"""Spans, which say what a process did when: `<run>/spans/<process>.jsonl`, for `run.py trace`.

A line is {"name", "start", "end" (seconds since the epoch), "track" (what else it belongs to: an
episode, say), and numbers}. A file stops growing at MOST_BYTES, so that a long run's trace is of
its beginning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from protocol.files import write_error
from telemetry.probes.clocks import epoch_seconds

log = logging.getLogger(__name__)

FOLDER = "spans"
MOST_BYTES = 64 << 20


class SpanFile:
    """One process's file. Nothing is written to the disk before `flush`, or 64 KiB."""

    def __init__(self, run_dir: Path, process: str) -> None:
        self._path = Path(run_dir) / FOLDER / f"{process}.jsonl"
        self._file: TextIO | None = None
        self._room_bytes = MOST_BYTES
        with self._stopping_if_full():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", buffering=1 << 16)
            self._room_bytes -= self._path.stat().st_size
        # Taken once: a clock that is set later changes no duration.
        self._epoch = epoch_seconds() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch, by the clock as it was when the file was opened."""
        return self._epoch + time.monotonic()

    def add(self, name: str, start: float, end: float, track: str = "", **numbers: Any) -> None:
        """Write down something that began and ended at these times (`now`)."""
        times = {"start": round(start, 6), "end": round(end, 6)}
        line = json.dumps({"name": name, **times, "track": track, **numbers}) + "\n"
        self._room_bytes -= len(line)
        if self._file is not None and self._room_bytes > 0:
            with self._stopping_if_full():
                self._file.write(line)

    @contextlib.contextmanager
    def span(self, name: str, track: str = "", **numbers: Any) -> Iterator[None]:
        """Write down how long it takes what happens inside."""
        start = self.now()
        try:
            yield
        finally:
            self.add(name, start, self.now(), track, **numbers)

    def flush(self) -> None:
        if self._file is not None:
            with self._stopping_if_full():
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._stopping_if_full():
                self._file.close()

    @contextlib.contextmanager
    def _stopping_if_full(self) -> Iterator[None]:
        """A disk that is full ends the trace, with a warning, and not the process."""
        try:
            yield
        except OSError as error:
            file = self._file
            self._file = None
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
            log.warning("the trace ends here: %s", write_error(self._path, error, "run.dir"))


def read_spans(run_dir: Path) -> dict[str, list[dict]]:
    """Process -> its spans, without those that were torn by a crash or a full disk."""
    spans_by_process = {}
    for path in sorted((Path(run_dir) / FOLDER).glob("*.jsonl")):
        spans = spans_by_process.setdefault(path.stem, [])
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                spans.append(json.loads(line))
    return spans_by_process
