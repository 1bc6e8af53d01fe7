"""The first line of a page: the state of a run, how far it is, and what comes next. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config.options import this_command
from telemetry.format import describe_figures, format_count, format_duration, format_percent
from telemetry.sinks.metrics_file import Record, last_wall_seconds, select_kind

TRAINING = "training"

PHASES = {
    "starting": "the policy is made, then engines, actors and the learner start",
    "building the policy": "the engines start",
    "demonstrations": "the policy is warmed up on them",
    "conversations": "the policy is warmed up on them",
    "warm start": "a first evaluation, then training",
    "starting engines": "a first evaluation, then training",
    "evaluating": "training",
    "ending": "the last evaluation, and a checkpoint",
}
"""Phase of a run -> what comes after it."""

RECENT_UPDATES = 10
"""Updates whose mean duration foretells the next."""


class Headline(NamedTuple):
    """A run in one line."""

    state: str  # "starting", "running", "finished", "interrupted", "failed", "stopped"
    words: str  # how far it is
    next_step: str  # what comes next, or what to do


def live_headline(
    status: Mapping[str, Any], records: Sequence[Record], goal: Mapping[str, float]
) -> Headline:
    """The headline of a run that goes on.

    `status`: as status.json has it; `goal`: "updates", "minutes", and "evaluate_every".
    """
    phase = status.get("phase") or "starting"
    updates = select_kind(records, "update")
    for wait in status.get("waits") or ():
        words = f"{wait['process']} waits {format_duration(wait['seconds'])} for {wait['what']}"
        return Headline("waiting", f"{phase}; {words}", "look at the logs of that process")
    if phase != TRAINING or not updates:
        return Headline(_state_in(phase), _describe_phase(status, phase), _after_phase(phase))
    done = updates[-1]["update"]
    left = goal["updates"] - done
    words = f"update {done} of {goal['updates']:,}"
    seconds = _seconds_per_update(updates)
    if seconds is not None:
        left_s = left * seconds
        if goal["minutes"]:
            left_s = max(0.0, min(left_s, 60 * goal["minutes"] - last_wall_seconds(records)))
        words += f", {format_duration(seconds)} each, about {format_duration(left_s)} left"
    if left <= 0:
        return Headline("running", words, "a last evaluation, then summary.json")
    return Headline("running", words, _next_update(done, goal))


def report_headline(
    directory: str, summary: Mapping[str, Any], status: Mapping[str, Any], records: Sequence[Record]
) -> Headline:
    """The headline of a run's report, from its summary.json and status.json, or {} without one.

    `directory`: the run's, as commands take it.
    """
    updates = select_kind(records, "update")
    done = updates[-1]["update"] if updates else 0
    progress = f"{done:,} updates in {format_duration(last_wall_seconds(records))}"
    progress += _describe_success(select_kind(records, "evaluation"))
    go_on = f"{this_command()} --resume {directory}"
    if status:
        words = f"{_describe_phase(status, status.get('phase') or 'starting')}; {progress}"
        return Headline("running", words, f"{this_command()} report {directory} draws it anew")
    ended = summary.get("ended")
    if ended is None:
        return Headline("stopped", f"{progress}; it has left no summary", go_on)
    if ended == "interrupted":
        return Headline("interrupted", progress, go_on)
    if ended != "finished":
        return Headline("failed", f"{ended} ({progress})", f"look at its logs; {go_on}")
    if summary.get("collapsed"):
        next_step = "it has collapsed: docs/guides/reading-a-run.md has causes"
        return Headline("finished", progress, next_step)
    this = this_command()
    next_step = f"{this} eval {directory}, {this} export {directory} DIR"
    return Headline("finished", progress, next_step)


def _state_in(phase: str) -> str:
    if phase in (TRAINING, "evaluating", "ending"):
        return "running"
    return "starting"


def _describe_phase(status: Mapping[str, Any], phase: str) -> str:
    words = phase
    done = status.get("done")
    total = status.get("of")
    if done is not None and total:
        words += f" {format_count(done)} of {format_count(total)}"
    figures = describe_figures(status.get("figures") or {})
    if figures:
        words += f", {figures}"
    seconds = status.get("phase_seconds")
    if seconds is not None:
        words += f", for {format_duration(seconds)}"
    left_s = status.get("seconds_left")
    if left_s is not None:
        words += f", about {format_duration(left_s)} left"
    return words


def _after_phase(phase: str) -> str:
    if phase == TRAINING:
        return "the first update, and with it the first points of the curves"
    return PHASES.get(phase, TRAINING)


def _next_update(done: int, goal: Mapping[str, float]) -> str:
    words = f"update {done + 1:,}"
    every = int(goal.get("evaluate_every") or 0)
    if every:
        evaluation = min(goal["updates"], (done // every + 1) * every)
        words += f", and an evaluation after update {evaluation:,.0f}"
    return words


def _seconds_per_update(updates: Sequence[Record]) -> float | None:
    recent = updates[-RECENT_UPDATES - 1 :]
    if len(recent) < 2:
        return None
    first = recent[0]
    last = recent[-1]
    return (last["wall_seconds"] - first["wall_seconds"]) / (last["update"] - first["update"])


def _describe_success(evaluations: Sequence[Record]) -> str:
    shares = [format_percent(record.get("success")) for record in evaluations]
    if not shares:
        return ""
    if len(shares) == 1:
        return f", held-out success {shares[0]}"
    return f", held-out success {shares[0]} → {shares[-1]}"
