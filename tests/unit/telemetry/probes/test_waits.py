"""Waits of a run: told by its processes, shown after a minute."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from config import RunSection
from controller.admission import Admission, AdmissionSettings
from controller.reporting import ControllerWaits, Situation
from engine.pool import Health
from protocol.lifetime import dying_with_parent
from protocol.messages import Stats
from protocol.validation import validate_stats
from telemetry.collector import open_collector
from telemetry.probes.waits import (
    FORGOTTEN_AFTER_SECONDS,
    SHOWN_AFTER_SECONDS,
    OwnWaits,
    StandingConditions,
    WaitBook,
)
from telemetry.progress import Progress, panel, status_line
from telemetry.sinks.status_file import build_status, read_status
from telemetry.state import RunState
from tests.fixtures import ROOT
from tests.fixtures.controller import PLAN

SETTINGS = AdmissionSettings(
    groups=2,
    group_size=2,
    max_staleness=1,
    max_leases=5,
    seed=0,
    train_size=3,
    held_out_size=3,
    evaluation=PLAN,
)
WELL = Situation(version=3, published=3, actors=4, engines=[("http://e", Health.HEALTHY, 1)])


def tell(state: RunState, now: float, source: str = "learner", **waits: float) -> None:
    """A process says what it waits for."""
    state.observe(Stats(source=source, event="waiting", values=dict(waits)), now)


def text_of(state: RunState, now: float) -> str:
    """The panel, as a terminal shows it."""
    console = Console(file=io.StringIO(), width=100)
    console.print(panel(state, RunSection(), now))
    return console.file.getvalue()


def test_invariant_11_a_wait_is_shown_everywhere_after_a_minute() -> None:
    state = RunState(0.0)
    tell(state, 100.0, weights=SHOWN_AFTER_SECONDS - 2)
    assert state.waits.long_waits(101.0) == []
    assert [(wait.what, wait.seconds) for wait in state.waits.long_waits(102.0)] == [
        ("weights", 60.0)
    ]
    assert "learner waits 1:00 min for weights" in status_line(state, RunSection(), 102.0)
    assert "learner waits 1:00 min for weights" in text_of(state, 102.0)
    assert build_status(state, 102.0)["waits"] == [
        {"process": "learner", "what": "weights", "seconds": 60.0}
    ]


def test_a_wait_that_is_over_is_shown_no_more() -> None:
    state = RunState(0.0)
    tell(state, 100.0, weights=90.0)
    tell(state, 101.0)
    assert state.waits.long_waits(101.0) == []


def test_silent_process_is_waited_for_and_its_earlier_waits_are_forgotten() -> None:
    """A process that says nothing is waited for and what it told before is forgotten."""
    state = RunState(0.0)
    tell(state, 100.0, weights=90.0)
    now = 100.0 + SHOWN_AFTER_SECONDS
    assert now - 100.0 > FORGOTTEN_AFTER_SECONDS
    assert [(wait.source, wait.what) for wait in state.waits.long_waits(now)] == [
        ("supervisor", "a word from the learner")
    ]


def test_a_silent_process_is_told_of_before_those_that_wait_for_longer() -> None:
    book = WaitBook()
    book.hear("learner", 10.0)
    book.take("controller", {"episode t3.0": 90.0}, 80.0)
    assert [wait.what for wait in book.long_waits(80.0)] == [
        "a word from the learner",
        "episode t3.0",
    ]


def test_nobody_waits_for_a_word_of_the_supervisor_which_shows_the_waits() -> None:
    state = RunState(0.0)
    state.observe(Stats(source="supervisor", event="gauge", values={"loop_lag": 0.0}), 0.0)
    assert state.waits.long_waits(1000.0) == []


def test_people_are_told_of_a_wait_after_a_minute_and_each_time_that_it_has_doubled() -> None:
    state = RunState(0.0)
    now = 0.0
    file = io.StringIO()
    progress = Progress(state, RunSection(), Console(file=file), clock=lambda: now)
    told = []
    for second in range(0, 600, 5):
        now = float(second)
        tell(state, now, batch=now)
        before = len(file.getvalue())
        progress.tick()
        if "waiting: learner waits" in file.getvalue()[before:].replace("  waiting", ""):
            told.append(second)
    assert told == [60, 120, 240, 480]


def test_drops_are_in_sight_before_any_update() -> None:
    state = RunState(0.0)
    assert "dropped" not in status_line(state, RunSection(), 1.0)
    state.observe(Stats(source="learner", event="drops", values={"env_error": 632}), 1.0)
    assert "dropped 632 env_error" in status_line(state, RunSection(), 1.0)
    assert "632 env_error" in text_of(state, 1.0)
    assert build_status(state, 1.0)["dropped"] == {"env_error": 632}


def test_the_status_file_says_what_holds_and_is_gone_when_the_run_has_ended(tmp_path: Path) -> None:
    now = 100.0
    collector = open_collector(tmp_path, clock=lambda: now)
    collector.handle(Stats(source="learner", event="waiting", values={"weights": 90.0}))
    assert json.loads((tmp_path / "status.json").read_text())["waits"][0]["what"] == "weights"
    assert read_status(tmp_path)["phase"] == "starting"
    collector.close()
    assert not (tmp_path / "status.json").exists() and read_status(tmp_path) == {}


def test_a_status_says_when_and_by_which_process_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 86_400.5)
    with contextlib.closing(open_collector(tmp_path)) as collector:
        collector.note_status()
        status = read_status(tmp_path)
    assert status["written"] == "1970-01-02T00:00:00Z"
    assert (status["host"], status["pid"]) == (socket.gethostname(), os.getpid())


KILLED = """
import os, signal, sys
from pathlib import Path
from telemetry.collector import open_collector
collector = open_collector(Path(sys.argv[1]))
collector.note_status()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_status_of_a_killed_run_is_void_and_replaced_when_it_goes_on(
    tmp_path: Path,
) -> None:
    """The status of a run that was killed holds no more and is replaced when it goes on."""
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, preexec_fn=dying_with_parent()
    )
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    written = json.loads((tmp_path / "status.json").read_text())
    assert written["pid"] == killed.pid and read_status(tmp_path) == {}
    killed.wait()
    assert read_status(tmp_path) == {}
    with contextlib.closing(open_collector(tmp_path, resume=True)) as collector:
        assert not (tmp_path / "status.json").exists()
        collector.note_status()
        assert read_status(tmp_path)["pid"] == os.getpid()


def test_a_status_from_another_machine_is_believed(tmp_path: Path) -> None:
    status = {"host": f"not-{socket.gethostname()}", "pid": 1 << 30, "phase": "training"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_status(tmp_path) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"host": "a", "pid": 0}',
        '{"host": "a", "pid": "b"}',
        '{"host": "a", "pid": 1',
    ],
)
def test_a_file_that_does_not_say_who_wrote_it_is_no_status(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) == {}


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "long", None])
def test_a_wait_that_is_no_time_is_refused(value: object) -> None:
    assert validate_stats(Stats(source="controller", event="waiting", values={"weights": value}))


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        (WELL, []),
        (WELL._replace(published=-1, version=-1), ["the first weights of the learner"]),
        (WELL._replace(published=4), ["all engines to run weights v4 (v3 is in force)"]),
        (
            WELL._replace(actors=0),
            ["an actor: none is connected (actor.count, or run.py actor --connect)"],
        ),
        (
            WELL._replace(engines=[("http://e", Health.SUSPECT, 1)]),
            ["the engine at http://e, which is suspect"],
        ),
    ],
)
def test_the_controller_waits_for_what_keeps_episodes_from_going_on(
    situation: Situation, words: list[str]
) -> None:
    waits = ControllerWaits()
    nothing_leased = Admission(SETTINGS)
    assert waits.seconds(situation, nothing_leased, 10.0) == dict.fromkeys(words, 0.0)
    assert waits.seconds(situation, nothing_leased, 75.0) == dict.fromkeys(words, 65.0)


def test_the_controller_names_the_episodes_that_have_been_out_longest() -> None:
    admission = Admission(SETTINGS)
    admission.start(0, [], 10)
    for since in (5.0, 1.0, 3.0):
        admission.lease(f"actor-{since:g}".encode(), since)
    waits = ControllerWaits().seconds(WELL, admission, 101.0)
    assert waits == {
        "episode t0.1 at actor-1 (lease 1 of 5)": 100.0,
        "episode t1.0 at actor-3 (lease 1 of 5)": 98.0,
    }


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=12))
def test_a_condition_is_as_old_as_its_last_break(looks: list[set[str]]) -> None:
    conditions = StandingConditions()
    seconds = {}
    for now, held in enumerate(looks):
        seconds = conditions.seconds({name: f"{name}!" for name in held}, float(now))
    for name in looks[-1] if looks else ():
        began = max((i + 1 for i, held in enumerate(looks) if name not in held), default=0)
        assert seconds[f"{name}!"] == len(looks) - 1 - began


def test_a_process_tells_its_waits_in_words_of_now() -> None:
    now = 0.0
    done = 3
    waits = OwnWaits(lambda: now)
    with waits.on(lambda: f"{done} of 8 episodes"), waits.on("weights"):
        now = 7.0
        done = 5
        assert waits.seconds() == {"5 of 8 episodes": 7.0, "weights": 7.0}
    assert waits.seconds() == {}


def test_waits_are_told_of_the_longest_first() -> None:
    book = WaitBook()
    book.take("learner", {"a": 70.0}, 0.0)
    book.take("controller", {"b": 90.0, "c": 10.0}, 0.0)
    assert [wait.what for wait in book.long_waits(0.0)] == ["b", "a"]


def test_drops_of_before_a_resume_count_too() -> None:
    state = RunState(
        0.0,
        [
            {
                "kind": "update",
                "update": 1,
                "wall_seconds": 5.0,
                "dropped_env_error": 2,
                "dropped_env_error_total": 2,
            }
        ],
    )
    assert state.drops_so_far() == {"env_error": 2}
    state.observe(Stats(source="learner", event="drops", values={"env_error": 3}), 1.0)
    assert state.drops_so_far() == {"env_error": 5}
