"""The summary of a run, and the table of what its numbers mean."""

from __future__ import annotations

import json
import math
import re
from importlib import metadata
from pathlib import Path

import pytest

from config import RunSection
from protocol.messages import DropReason, Stats
from telemetry.format import format_duration
from telemetry.metrics_schema import METRICS, find_metric, tensorboard_tag, undocumented_names
from telemetry.progress import evaluation_line
from telemetry.sinks.status_file import build_status
from telemetry.state import RunState
from telemetry.summary import format_summary, summarize_run, write_summary
from tests.fixtures.records import evaluated

REQUIRED = {
    "updates",
    "wall_seconds",
    "generated_tokens",
    "training_tokens",
    "trained_tokens",
    "success_first",
    "success_last",
    "tokens_per_success",
    "interventions",
    "resamples",
    "mean_token_age",
    "dropped",
    "versions",
}


def state_of(*messages: tuple[str, str, dict]) -> RunState:
    """The state after the messages (source, event, values), one a second."""
    state = RunState(0.0)
    for second, (source, event, values) in enumerate(messages, 1):
        state.observe(Stats(source=source, event=event, values=values), float(second))
    return state


def age(mean: float, largest: int) -> dict:
    return {"token_age_mean": mean, "token_age_max": largest}


def trained_state() -> RunState:
    return state_of(
        (
            "learner",
            "evaluation",
            {
                "update": 0,
                **evaluated(0.25, 64),
                "success/pick": 0.5,
                "evaluation_tokens": 150,
            },
        ),
        ("learner", "phase", {"phase": "training"}),
        ("controller", "gauge", {"generated_tokens": 1000, "wasted_tokens": 50}),
        ("controller", "gauge", {"interventions": 7, "resamples": 2}),
        (
            "learner",
            "update",
            {"update": 1, "success": 0.5, "episodes": 8, "trained_tokens": 100} | age(0.0, 0),
        ),
        (
            "learner",
            "update",
            {"update": 2, "success": 0.25, "episodes": 8, "trained_tokens": 300}
            | {"training_tokens": 500}
            | age(1.0, 2),
        ),
        ("learner", "dropped", {"dropped_actor_lost": 3}),
        ("learner", "failures", {"actor_lost": "0.1: three of them"}),
        ("learner", "failures", {"actor_lost": "0.2: of a learner that was started again"}),
        (
            "learner",
            "evaluation",
            {
                "update": 2,
                **evaluated(0.75, 64),
                "success/pick": 1.0,
                "score/price": 0.25,
                "evaluation_tokens": 250,
            },
        ),
    )


def test_a_summary_has_every_field_that_was_promised() -> None:
    assert summarize_run(trained_state(), 10.0).keys() >= REQUIRED


def test_a_summary_of_a_run_that_did_nothing_has_them_too() -> None:
    summary = summarize_run(RunState(0.0), 1.0)
    assert summary.keys() >= REQUIRED
    assert (summary["updates"], summary["success_last"], summary["tokens_per_success"]) == (
        0,
        None,
        None,
    )


def test_success_is_held_out_first_and_last() -> None:
    summary = summarize_run(trained_state(), 10.0)
    assert (summary["success_first"], summary["success_last"]) == (0.25, 0.75)
    assert summary["success_by_type"] == {"pick": 1.0}


def test_sets_and_pass_at_k_are_those_of_the_last_evaluation() -> None:
    last = {
        "success": 0.5,
        "eval/unseen/success": 0.5,
        "eval/seen/success": 0.75,
        "eval/seen/success/heat": 1.0,
        "eval/seen/score/success": 0.1,
        "pass_at/4": 0.8,
    }
    state = state_of(
        ("learner", "evaluation", {"update": 0, "success": 0.25}),
        ("learner", "evaluation", {"update": 2, **last}),
    )
    summary = summarize_run(state, 10.0)
    assert summary["success_by_set"] == {"unseen": 0.5, "seen": 0.75}
    assert summary["pass_at"] == {"4": 0.8} and summary["success_by_type"] == {}
    table = format_summary(summary, RunSection())
    assert "set seen" in table and "pass@4" in table
    line = evaluation_line(state.evaluations[-1])
    assert line.startswith("held-out success 50.0 %") and line.endswith("seen 75.0 %")
    assert build_status(state, 10.0)["evaluation"] == {
        "update": 2,
        "success": 0.5,
        "sets": {"unseen": 0.5, "seen": 0.75},
    }
    assert undocumented_names(list(last)) == []


def test_status_before_the_first_evaluation_has_none() -> None:
    assert build_status(RunState(0.0), 1.0)["evaluation"] is None


def test_scores_are_those_of_the_last_evaluation() -> None:
    summary = summarize_run(trained_state(), 10.0)
    assert summary["scores"] == {"price": 0.25} and "price" in format_summary(summary, RunSection())


def test_a_token_age_counts_as_often_as_its_tokens() -> None:
    summary = summarize_run(trained_state(), 10.0)
    assert (summary["mean_token_age"], summary["token_age_max"]) == (0.75, 2)
    assert summary["training_tokens"] == 500


def test_tokens_per_success_leaves_evaluation_out() -> None:
    assert summarize_run(trained_state(), 10.0)["tokens_per_success"] == (1000 - 400) / 6


def test_counts_are_totals() -> None:
    summary = summarize_run(trained_state(), 10.0)
    names = (
        "updates",
        "generated_tokens",
        "trained_tokens",
        "wasted_tokens",
        "interventions",
        "resamples",
        "episodes",
    )
    assert [summary[name] for name in names] == [2, 1000, 400, 50, 7, 2, 16]
    assert summary["dropped"] == {"actor_lost": 3}


def test_time_is_split_by_phase() -> None:
    summary = summarize_run(trained_state(), 10.0)
    assert summary["seconds_by_phase"] == {"starting": 2.0, "training": 8.0}
    assert summary["wall_seconds"] == 10.0


def test_versions_are_those_installed() -> None:
    versions = summarize_run(RunState(0.0), 1.0)["versions"]
    assert versions["msgspec"] == metadata.version("msgspec")
    assert "python" in versions


def test_more_can_be_said() -> None:
    summary = summarize_run(RunState(0.0), 1.0, ended="interrupted", seed=3)
    assert (summary["ended"], summary["seed"]) == ("interrupted", 3)


def test_a_summary_is_written_as_strict_json(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"a": math.nan, "b": {"c": math.inf}, "d": 2.0})
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text()) == {"a": None, "b": {"c": None}, "d": 2}


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_summary(tmp_path, {"updates": 1})
    with pytest.raises(TypeError):
        write_summary(tmp_path, {"updates": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"updates": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_closing_table_says_what_matters() -> None:
    text = format_summary(summarize_run(trained_state(), 75.0), RunSection())
    heading, *lines = text.splitlines()
    said = rows_of(text)
    assert heading == "finished: 2 updates in 1:15 min"
    assert said["held-out success"] == (
        "25.0 % (16.0 to 36.8) -> 75.0 % (63.2 to 84.0), 95 % intervals (games: 64)"
    )
    assert said["dropped episodes"] == "3 actor_lost"
    assert said["first actor_lost"] == "0.1: three of them"
    assert said["control"] == "thinking cut 7 times, 2 turns sampled again"
    kinds = [number for number, line in enumerate(lines) if line.startswith("    ")]
    assert kinds == [1, 2] and said["pick"] == "100.0 %" and said["price"] == "0.25"


def rows_of(text: str) -> dict[str, str]:
    """The rows of a closing table: name -> value."""
    rows = (re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines()[1:])
    return dict(rows)


def test_format_summary_of_a_run_that_did_nothing_has_no_rows_of_dashes() -> None:
    """What was not measured has no row."""
    text = format_summary(summarize_run(RunState(0.0), 1.0, "interrupted"), RunSection())
    assert text == "interrupted: 0 updates in 1 s"


def test_format_summary_tells_what_was_not_needed_apart_from_what_was_lost() -> None:
    """Episodes that are canceled at the end of every run are no loss."""
    state = state_of(("learner", "dropped", {"dropped_canceled": 128, "dropped_stale": 2}))
    rows = rows_of(format_summary(summarize_run(state, 1.0), RunSection()))
    assert rows["dropped episodes"] == "2 stale" and rows["not needed"] == "128 canceled"


@pytest.mark.parametrize(
    ("ended", "updates", "said"),
    [("finished", 5, True), ("finished", 0, False), ("interrupted", 5, False)],
)
def test_a_run_whose_minutes_were_over_before_its_first_update_says_so(
    ended: str, updates: int, said: bool
) -> None:
    state = state_of(("learner", "phase", {"phase": "warm start"}))
    text = format_summary(
        summarize_run(state, 901.0, ended), RunSection(max_updates=updates, max_minutes=14.5)
    )
    assert (
        "run.max_minutes (14.5) were over before the first; 15:00 min of them: warm start"
        in " ".join(text.split())
    ) == said


@pytest.mark.parametrize("failures", [{}, {"env_error": "t0.0: no room"}])
def test_a_run_without_an_update_is_told_to_look_at_its_failures_where_there_are_any(
    failures: dict[str, str],
) -> None:
    state = state_of(("learner", "phase", {"phase": "training"}), ("learner", "failures", failures))
    (line,) = [
        line
        for line in format_summary(
            summarize_run(state, 901.0), RunSection(max_updates=5, max_minutes=14.0)
        ).splitlines()
        if line.startswith("  no update")
    ]
    assert "--minutes" in line and ("why episodes failed" in line) == bool(failures)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (3600, "1:00:00 h"),
        (3729, "1:02:09 h"),
    ],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("name", METRICS)
def test_every_field_is_snake_case_and_explained(name: str) -> None:
    field = METRICS[name]
    assert name.isidentifier()
    assert name == name.lower()
    assert field.description[0].isupper() or not field.description[0].isalpha()
    assert field.unit


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_to_drop_an_episode_is_documented(reason: DropReason) -> None:
    assert METRICS[f"dropped_{reason}"].aggregation == "total"


def test_what_a_run_writes_is_documented() -> None:
    names = {name for record in trained_state().records for name in record} - {"kind"}
    assert undocumented_names(sorted(names)) == []


def test_a_total_is_explained_by_its_field_and_only_where_there_is_one() -> None:
    total = find_metric("interventions_total")
    assert total is not None
    assert total.description == "Times thinking was cut; since the run started"
    assert undocumented_names(["loss_total", "interventions_total", "success/pick", "novel"]) == [
        "loss_total",
        "novel",
    ]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("entropy", "policy/entropy"),
        ("interventions_total", "control/interventions_total"),
        ("novel", "other/novel"),
    ],
)
def test_tensorboard_groups_fields(name: str, tag: str) -> None:
    assert tensorboard_tag(name) == tag


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("eval/seen/success", "mean over its tasks); of the evaluation set seen"),
        ("eval/seen/success/heat", "Episodes of type heat that reached their goal; of the"),
        ("eval/seen/pass_at/4", "Tasks that one of 4 samples solves"),
        ("pass_at/2", "Tasks that one of 2 samples solves"),
    ],
)
def test_figures_of_sets_and_of_samples_are_explained(name: str, description: str) -> None:
    assert description in find_metric(name).description
    assert tensorboard_tag(name, "evaluation") == f"evaluation/{name.removeprefix('eval/')}"


@pytest.mark.parametrize("name", ["eval/", "eval/seen", "eval/seen/novel", "eval//x"])
def test_names_that_only_look_like_a_sets_are_undocumented(name: str) -> None:
    assert undocumented_names([name]) == [name]
