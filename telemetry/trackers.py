"""Weights & Biases, or Trackio, which has the same interface: each update's and evaluation's numbers go there, too (run.tracker)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config import ConfigError
from telemetry.fields import tag_of
from telemetry.metrics_file import Record

log = logging.getLogger(__name__)

PROJECT = "foray"


def check_tracker(name: str) -> None:
    """Raises ConfigError for one that is not installed."""
    if name != "none" and find_spec(name) is None:
        raise ConfigError(f"run.tracker: {name} is not installed; install the extra {name!r}, or set run.tracker to none")


class Tracker:
    """A run of a tracker. What fails there is said once, and never ends the run here."""

    def __init__(self, name: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        self._library: Any = importlib.import_module(name)
        self._name = name
        self._try("init", project=PROJECT, name=Path(run_dir).name, config=dict(settings))

    def log(self, record: Record) -> None:
        """Send the numbers of a line of metrics.jsonl, named as in TensorBoard."""
        numbers = {tag_of(name, record["kind"]): value for name, value in record.items() if isinstance(value, int | float)}
        self._try("log", numbers)

    def close(self) -> None:
        self._try("finish")

    def _try(self, what: str, *arguments: Any, **named: Any) -> None:
        if self._library is None:
            return
        try:
            getattr(self._library, what)(*arguments, **named)
        except Exception as error:  # a network that is gone, a login that was refused: theirs to mend
            log.warning("run.tracker: %s failed, and gets nothing more of this run: %s", self._name, error)
            self._library = None
