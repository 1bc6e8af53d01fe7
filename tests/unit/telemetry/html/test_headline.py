"""The first line of a page says the state of a run, how far it is, and what comes next."""

from __future__ import annotations

import pytest

from telemetry.html.headline import live_headline, report_headline

GOAL = {"updates": 9, "minutes": 14.0, "evaluate_every": 4}


def updates(count: int, seconds: float = 30.0) -> list[dict]:
    """So many updates, one every so many seconds."""
    return [
        {"kind": "update", "update": u, "wall_seconds": seconds * u} for u in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("status", "state", "words", "next_step"),
    [
        ({}, "starting", "starting", "then engines"),
        (
            {"phase": "warm start", "done": 31, "of": 120, "phase_seconds": 12.0},
            "starting",
            "warm start 31 of 120, for 12 s",
            "a first evaluation",
        ),
        ({"phase": "training"}, "running", "training", "the first update"),
        ({"phase": "ending"}, "running", "ending", "a checkpoint"),
    ],
)
def test_a_run_without_updates_says_its_phase(
    status: dict, state: str, words: str, next_step: str
) -> None:
    headline = live_headline(status, [], GOAL)
    assert (headline.state, headline.words) == (state, words) and next_step in headline.next_step


def test_a_run_says_its_pace_and_its_next_update_and_evaluation() -> None:
    headline = live_headline({"phase": "training"}, updates(5), GOAL)
    assert headline.words == "update 5 of 9, 30 s each, about 2:00 min left"
    assert headline.next_step == "update 6, and an evaluation after update 8"


def test_the_time_left_is_no_longer_than_the_limit_in_minutes() -> None:
    headline = live_headline({"phase": "training"}, updates(5), GOAL | {"minutes": 3.0})
    assert headline.words.endswith("about 30 s left")


def test_the_last_evaluation_is_after_the_last_update() -> None:
    headline = live_headline({"phase": "training"}, updates(8), GOAL)
    assert headline.next_step == "update 9, and an evaluation after update 9"


def test_a_long_wait_comes_before_all_else() -> None:
    waits = [{"process": "learner", "what": "trajectories", "seconds": 90.0}]
    headline = live_headline({"phase": "training", "waits": waits}, updates(5), GOAL)
    assert headline.state == "waiting"
    assert headline.words == "training; learner waits 1:30 min for trajectories"


@pytest.mark.parametrize(
    ("summary", "status", "state", "next_step"),
    [
        ({"ended": "finished"}, {}, "finished", "export"),
        ({"ended": "finished", "collapsed": True}, {}, "finished", "collapsed"),
        ({"ended": "interrupted"}, {}, "interrupted", "--resume run"),
        ({"ended": "the learner failed"}, {}, "failed", "--resume run"),
        ({}, {}, "stopped", "--resume run"),
        ({"ended": "interrupted"}, {"phase": "training"}, "running", "report run"),
    ],
)
def test_a_report_says_how_a_run_ended_and_what_to_do(
    summary: dict, status: dict, state: str, next_step: str
) -> None:
    headline = report_headline("run", summary, status, updates(2))
    assert headline.state == state and next_step in headline.next_step
    assert "2 updates in 1:00 min" in headline.words
