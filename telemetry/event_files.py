"""TensorBoard event files, written with the tensorboard package alone (torch's SummaryWriter would import torch here)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from telemetry.fields import tag_of


class EventFile:
    """One event file in `folder`."""

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes half a second, and only the process that collects needs it.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))

    def append(self, record: dict[str, Any]) -> None:
        """The numbers of an update's or evaluation's record as scalars at step `update`, flushed."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag_of(name, record["kind"]), simple_value=_float32(value))
            for name, value in record.items()
            if isinstance(value, int | float) and name != "update"
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=record["update"], summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _float32(value: float) -> float:
    """What the files hold; what is too large for it is infinite, for which protobuf raises."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
