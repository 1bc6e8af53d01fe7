"""TensorBoard event files, written with the tensorboard package alone.

Torch's SummaryWriter would import torch here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Iterator
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import write_error
from telemetry.metrics_schema import tensorboard_tag
from telemetry.probes.clocks import epoch_seconds

log = logging.getLogger(__name__)

DT_STRING = 7
"""Number of the type of texts in TensorFlow's types.proto."""

_numbers = itertools.count()


class EventFile:
    """One event file in `folder`.

    A disk that is full ends the file, with a warning, and not the run.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes half a second, and only the process that collects needs it.
        # The types of its messages are made at run time: a checker finds none of them.
        event_pb2: Any = import_module("tensorboard.compat.proto.event_pb2")
        summary_pb2: Any = import_module("tensorboard.compat.proto.summary_pb2")
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        writer = f"{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / f"events.out.tfevents.{epoch_seconds():010.0f}.{writer}"
        self._file: FileIO | None = None
        with self._stopping_if_full():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._write(self._event(wall_time=epoch_seconds(), file_version="brain.Event:2"))

    def append(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record as scalars at step `update`, flushed."""
        summary = self._summary()
        for name, value in record.items():
            if isinstance(value, int | float) and name != "update":
                tag = tensorboard_tag(name, record["kind"])
                summary.value.add(tag=tag, simple_value=_float32(value))
        self._write(self._event(wall_time=epoch_seconds(), step=record["update"], summary=summary))

    def add_text(self, name: str, text: str) -> None:
        """Write a text, which TensorBoard shows as Markdown."""
        summary = self._summary()
        value = summary.value.add(tag=f"{name}/text_summary")
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = DT_STRING
        value.tensor.tensor_shape.dim.add(size=1)
        value.tensor.string_val.append(text.encode())
        self._write(self._event(wall_time=epoch_seconds(), step=0, summary=summary))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: Any) -> None:
        # Tensorboard's own writer of events has a thread, which would end with a traceback.
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is not None:
            with self._stopping_if_full():
                RecordWriter(self._file).write(event.SerializeToString())

    @contextlib.contextmanager
    def _stopping_if_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            log.warning(
                "TensorBoard's numbers end here: %s", write_error(self._path, error, "run.dir")
            )


def _float32(value: float) -> float:
    """The value as the files hold it; one too large is infinite, where protobuf would raise."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
