"""Numbers of a run in a tracker: the real libraries, which write where they are told to."""

from __future__ import annotations

import importlib
import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from config import ConfigError
from telemetry.sinks.trackers import RETRY_RECORDS, Tracker, check_tracker
from tests.fixtures import ROOT

PROGRAM = """
import sys
from pathlib import Path
from telemetry.sinks.trackers import Tracker
settings = {"run.seed": 3, "run.tracker_project": (sys.argv[2:] or [""])[0]}
tracker = Tracker(sys.argv[1], Path("runs/first"), settings)
tracker.log({"kind": "update", "update": 1, "reward": 0.5, "epsilon": None})
tracker.log({"kind": "evaluation", "update": 1, "success": 0.25})
tracker.close()
"""


def tracked(name: str, directory: Path, project: str = "", **environment: str) -> None:
    """A run of two lines, in a process of its own: these libraries keep threads."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, project],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "failed, which costs" not in done.stderr, done.stderr


@pytest.mark.slow
def test_trackio_gets_each_number_by_its_name_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "foray.db") as database:
        rows = [
            json.loads(metrics)
            for (metrics,) in database.execute(
                "SELECT metrics FROM metrics WHERE run_name = 'first' ORDER BY id"
            )
        ]
    assert rows == [
        {"run/update": 1, "policy/reward": 0.5},
        {"evaluation/update": 1, "evaluation/success": 0.25},
    ]


@pytest.mark.slow
def test_tracker_shows_a_run_in_the_project_that_is_set(tmp_path: Path) -> None:
    """run.tracker_project names the project, in place of ours."""
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    tracked("trackio", tmp_path, "households", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert (tmp_path / "trackio" / "households.db").exists()


def test_wandb_takes_a_run_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    tracked("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"policy/reward" in content and b"evaluation/success" in content


def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("telemetry.sinks.trackers.find_spec", lambda name: None)
    check_tracker("none")
    with pytest.raises(
        ConfigError, match=r"run\.tracker: wandb is not installed; install the extra 'wandb'"
    ):
        check_tracker("wandb")


FLAKY = """
calls, failures = [], []
def _call(what, *arguments, **named):
    calls.append((what, arguments, named))
    if failures and failures.pop(0):
        raise OSError("the network is gone")
def init(**named): _call("init", **named)
def define_metric(*a, **named): _call("define_metric", *a, **named)
def log(*a, **named): _call("log", *a, **named)
def finish(): _call("finish")
"""


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A library called wandb; `failures` says which of the next calls fail."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "wandb.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(tmp_path / "stub")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    library = importlib.import_module("wandb")
    yield library
    del sys.modules["wandb"]


def sent(library) -> list[int]:
    return [arguments[0]["update"] for what, arguments, _ in library.calls if what == "log"]


def test_a_call_that_fails_costs_itself_alone_and_is_said_once(
    flaky, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker("wandb", tmp_path / "run", {})
    flaky.failures += [True, True, False]
    with caplog.at_level(logging.WARNING):
        for update in range(1, 4):
            tracker.log({"kind": "update", "update": update})
    tracker.close()
    assert sent(flaky) == [1, 2, 3] and flaky.calls[-1][0] == "finish"
    assert caplog.text.count("log failed") == 1 and "the network is gone" in caplog.text


def test_a_tracker_that_cannot_begin_is_tried_again(flaky, tmp_path: Path) -> None:
    flaky.failures += [True, True]
    tracker = Tracker("wandb", tmp_path / "run", {})
    for update in range(1, RETRY_RECORDS + 3):
        tracker.log({"kind": "update", "update": update})
    assert sent(flaky) == [RETRY_RECORDS + 1, RETRY_RECORDS + 2]


def test_a_resumed_run_is_the_same_run_over_an_axis_of_updates(flaky, tmp_path: Path) -> None:
    for _ in range(2):
        Tracker("wandb", tmp_path / "run", {}).close()
    Tracker("wandb", tmp_path / "another", {}).close()
    first, again, other = (named for what, _, named in flaky.calls if what == "init")
    assert (
        first["id"] == again["id"] != other["id"] and first["resume"] == again["resume"] == "allow"
    )
    assert ("define_metric", ("*",), {"step_metric": "update"}) in flaky.calls
