"""Measure how long `run.py report` takes for a long run, part by part.

Beside it is what reading all of its episodes would take.

`python -m benchmarks.report [--updates N] [--episodes N] [--quick] [--json FILE]`

The run is made on the spot: updates and episodes as the default job leaves them (18 turns of 89 +
20 tokens, 26 KB), without a policy; so the log-prob ratios of the few shown episodes are not in it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.transport_paths import GROUP_SIZE, Size, keyed, trajectory
from learner.data.episode_log import EpisodeLog, Records
from protocol.codec import encode
from supervisor.cli.report import (
    choose_episodes,
    group_at,
    intervention_windows,
    pause_garbage_collection,
    read_run,
    sample_episodes,
)
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.html.report import render_live_charts, render_report
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics
from telemetry.work_clock import WorkClock

SIZE = Size(turns=18, prompt=89, response=20)
EVERY = 20
"""Updates between evaluations."""

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--updates", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--episodes", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="100 updates and 3,000 episodes")
    parser.add_argument("--json", type=Path, help="write the table's figures to this file, too")
    options = parser.parse_args()
    updates, episodes = (100, 3000) if options.quick else (options.updates, options.episodes)
    with tempfile.TemporaryDirectory() as made:
        figures = measured(Path(made), updates, episodes)
    table = Table(
        "part", "seconds", title=f"run.py report, {updates:,} updates and {episodes:,} episodes"
    )
    for name, seconds in figures.items():
        table.add_row(name, f"{seconds:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measured(run: Path, updates: int, episodes: int) -> dict[str, float]:
    """Seconds of each part; the run is made in the directory."""
    quiet = WorkClock("reading", Console(quiet=True))
    (run / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines(updates)))
    write(run / EPISODES_DIR, episodes)
    records, index = timed(lambda: Records(run / EPISODES_DIR))
    with pause_garbage_collection():
        found, look = timed(
            lambda: dict(sample_episodes(records, run / EPISODES_DIR, (), "run", quiet))
        )
    _, cuts = timed(
        lambda: [around for episode in found.values() for around in intervention_windows(episode)]
    )
    number = {episode.key: number for number, episode in found.items()}
    _, groups = timed(
        lambda: [
            group_at(records, number[e.key], run / EPISODES_DIR, GROUP_SIZE)
            for e in choose_episodes(list(found.values()))
        ]
    )
    metrics, reading = timed(lambda: read_metrics(run / METRICS_FILE))
    _, charts = timed(lambda: render_live_charts(metrics))
    (run / EPISODES_DIR).rename(run / "log")  # whose policy is not there
    whole, _ = timed(lambda: read_run(run, "run", (), quiet))
    _, page = timed(lambda: render_report([whole]))
    (run / "log").rename(run / EPISODES_DIR)
    _, everything = timed(lambda: sum(1 for _ in read_episodes(run / EPISODES_DIR)))
    parts = {
        "where episodes stand": index,
        "the episodes that are looked at": look,
        "cuts in them": cuts,
        "groups of those shown": groups,
    }
    parts |= {"measurements": reading, "the page": page}
    return {
        **parts,
        "together": sum(parts.values()),
        "the dashboard's charts": charts,
        "instead: read all episodes": everything,
    }


def lines(updates: int) -> list[dict]:
    """Measurements with as many numbers as those of a run; an evaluation every so many updates."""
    rng = random.Random(0)
    found = []
    for update in range(1, updates + 1):
        numbers = {f"number_{i}": rng.random() for i in range(90)}
        named = {
            "success": rng.random(),
            "reward": rng.random(),
            "training_tokens": 8000.0 * update,
            "wall_seconds": 10.0 * update,
        }
        found.append({"kind": "update", "update": update, **named, **numbers})
        if update % EVERY == 0:
            found.append({"kind": "evaluation", "update": update, "episodes": 128, **named})
    return found


def write(log: Path, episodes: int) -> None:
    made = [trajectory(SIZE, seed) for seed in range(16)]
    file = EpisodeLog.open(log)
    for number in range(episodes):
        file.append([encode(keyed(made, number))])
    file.close()


def timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


if __name__ == "__main__":
    main()
