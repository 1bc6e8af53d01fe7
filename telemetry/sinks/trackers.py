"""Weights & Biases, or Trackio, which has the same interface (run.tracker).

Each update's and evaluation's numbers go there, too.
"""

from __future__ import annotations

import importlib
import logging
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config import ConfigError
from protocol.files import atomic_write
from telemetry.metrics_schema import tensorboard_tag
from telemetry.sinks.metrics_file import Record

log = logging.getLogger(__name__)

PROJECT = "foray"

AXIS = "update"
"""Name of the number that all others are drawn over."""

RETRY_RECORDS = 10
"""Records after which a tracker that could not begin is tried again.

Each try may take the library's whole timeout.
"""


def check_tracker(name: str) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    if name != "none" and find_spec(name) is None:
        raise ConfigError(
            f"run.tracker: {name} is not installed; install the extra {name!r}, or set "
            "run.tracker to none"
        )


class Tracker:
    """A run of a tracker, the same one after a resume.

    A call that fails there costs that call, and never ends the run here.
    """

    def __init__(self, name: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        self._library: Any = importlib.import_module(name)
        self._name = name
        self._begin_arguments = {
            "project": settings.get("run.tracker_project") or PROJECT,
            "name": Path(run_dir).name,
            "resume": "allow",
            "config": dict(settings),
        }
        if name == "wandb":
            self._begin_arguments["id"] = _run_id(Path(run_dir))
        self._begun = False
        self._records = 0
        self._failed = False
        self._begin()

    def log(self, record: Record) -> None:
        """Send the numbers of a line of metrics.jsonl, over the number of updates.

        They are named as in TensorBoard.
        """
        if not self._begun and self._records % RETRY_RECORDS == 0:
            self._begin()
        self._records += 1
        if not self._begun:
            return
        numbers = {
            tensorboard_tag(name, record["kind"]): value
            for name, value in record.items()
            if isinstance(value, int | float)
        }
        if self._name == "wandb":
            # Its own step must not go back, as that of an evaluation that ends late does.
            self._try("log", numbers | {AXIS: record["update"]})
        else:
            self._try("log", numbers, step=record["update"])

    def close(self) -> None:
        if self._begun:
            self._try("finish")

    def _begin(self) -> None:
        self._begun = self._try("init", **self._begin_arguments)
        if self._begun and self._name == "wandb":
            self._try("define_metric", AXIS)
            self._try("define_metric", "*", step_metric=AXIS)

    def _try(self, what: str, *arguments: Any, **named: Any) -> bool:
        """Call the library; says whether that went well.

        Failures are said once, until a call goes well again.
        """
        try:
            getattr(self._library, what)(*arguments, **named)
        except Exception as error:
            # A network that is gone, a login that was refused: theirs to mend.
            if not self._failed:
                log.warning(
                    "run.tracker: %s: %s failed, which costs what it was to send: %s",
                    self._name,
                    what,
                    error,
                )
            self._failed = True
            return False
        self._failed = False
        return True


def _run_id(run_dir: Path) -> str:
    """The run's name at W&B, kept in its directory, so that a resumed run has the same."""
    path = run_dir / "wandb_id"
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        atomic_write(path, secrets.token_hex(8), "run.dir")
    return path.read_text().strip()
