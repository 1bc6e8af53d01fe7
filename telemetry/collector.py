"""The collector takes the Stats of all processes and writes the files of metrics.

The collector has no socket and no task: whoever receives the messages calls `handle`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocol.files import WriteError
from protocol.messages import Stats
from telemetry.sinks.event_files import EventFile
from telemetry.sinks.metrics_file import METRICS_FILE, MetricsFile, Record, read_metrics
from telemetry.sinks.status_file import StatusFile
from telemetry.sinks.trackers import Tracker
from telemetry.state import MIN_EFFECTIVE_SAMPLE_SIZE, RunState

TENSORBOARD_FOLDER = "tensorboard"


class Collector:
    """One for each run, in the supervisor; `open_collector` makes it.

    `state` is what progress and summary read.
    """

    def __init__(
        self,
        state: RunState,
        metrics: MetricsFile,
        events: EventFile,
        status: StatusFile,
        tracker: Tracker | None,
        clock: Callable[[], float],
    ) -> None:
        self.state = state
        self.failure: WriteError | None = None
        """Error that ended the writing: the run is to end, and is still listened to until then."""
        self._metrics = metrics
        self._events = events
        self._status = status
        self._tracker = tracker
        self._clock = clock

    def handle(self, stats: Stats) -> None:
        """Take one message; write a line when it is an update or an evaluation."""
        record = self.state.observe(stats, self._clock())
        if record is not None:
            self._write_down(record)
            self._events.append(record)
            if self._tracker is not None:
                self._tracker.log(record)
        self.note_status()

    def _write_down(self, record: Record) -> None:
        """Write a line, unless one is missing.

        A curve that ends is not taken for one with a hole.
        """
        if self.failure is not None:
            return
        try:
            self._metrics.append(record)
        except WriteError as error:
            self.failure = error

    def note_status(self) -> None:
        """Write what the run does now, once a second.

        It is to be called now and then when no message comes, too.
        """
        self._status.write(self.state, self._clock())

    def close(self) -> None:
        """Close the files.

        Every line is complete at any time, so that a process that is killed needs no close.
        """
        self._metrics.close()
        self._events.close()
        self._status.remove()
        if self._tracker is not None:
            self._tracker.close()


def open_collector(
    run_dir: Path,
    resume: bool = False,
    clock: Callable[[], float] = time.monotonic,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
    tracker: Tracker | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Collector:
    """Open the files in `run_dir`, which exists.

    `resume`: counts and wall time go on where the last run stopped. `settings`, by their full
    names, are shown beside the numbers.
    """
    path = run_dir / METRICS_FILE
    earlier = read_metrics(path) if resume else None
    state = RunState(clock(), earlier, min_effective_sample_size)
    status = StatusFile(run_dir)
    status.remove()  # it may be of a run that was killed, and goes on now
    events = EventFile(run_dir / TENSORBOARD_FOLDER)
    if settings is not None:
        rows = (f"| {name} | {value} |" for name, value in settings.items())
        events.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
    return Collector(state, MetricsFile(path), events, status, tracker, clock)
