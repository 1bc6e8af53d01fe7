"""Numbers of a run in a tracker: the real libraries, which write where they are told to."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from config import ConfigError
from telemetry.trackers import Tracker, check_tracker

PROGRAM = """
import sys
from pathlib import Path
from telemetry.trackers import Tracker
tracker = Tracker(sys.argv[1], Path("runs/first"), {"run.seed": 3})
tracker.log({"kind": "update", "update": 1, "reward": 0.5, "epsilon": None})
tracker.log({"kind": "evaluation", "update": 1, "success": 0.25})
tracker.close()
"""


def tracked(name: str, directory: Path, **environment: str) -> None:
    """A run of two lines, in a process of its own: these libraries keep threads."""
    import os

    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], env={**os.environ, "PYTHONPATH": root, **environment}, cwd=directory, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "gets nothing more" not in done.stderr, done.stderr


def test_trackio_gets_each_number_by_its_name_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "foray.db") as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics WHERE run_name = 'first' ORDER BY id")]
    assert rows == [{"run/update": 1, "policy/reward": 0.5}, {"evaluation/update": 1, "evaluation/success": 0.25}]


def test_wandb_takes_a_run_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    tracked("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"policy/reward" in content and b"evaluation/success" in content


def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.trackers.find_spec", lambda name: None)
    check_tracker("none")
    with pytest.raises(ConfigError, match=r"run\.tracker: wandb is not installed; install the extra 'wandb'"):
        check_tracker("wandb")


def test_a_tracker_that_fails_is_said_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_tracker.py").write_text("def init(**_): pass\ndef log(numbers): raise OSError('the network is gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    tracker = Tracker("broken_tracker", tmp_path, {})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tracker.log({"kind": "update", "update": 1})
        tracker.close()
    assert caplog.text.count("broken_tracker failed") == 1 and "the network is gone" in caplog.text
