"""Measure how long the learner waits, by the order in which it trains on groups.

That is the order of admission, or one in which others may pass a slow one.

`python -m benchmarks.order [--updates N] [--run DIR] [--quick] [--json FILE]`

A simulation of the controller's own admission and the learner's own groups, with actors and a
learner that only take time. Episodes take as long as those recorded in DIR (its spans of turns),
or, without one, as in ALFWorld: a gamma distribution of mean 1 whose deviation is a third of it;
and the same where one in 500 takes 10 to 100 times as long (Pareto, exponent 1). An update takes an
eighth of the time that the actors need for its episodes. Ages are counted from the version that the
engines ran when the group was admitted.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config import EvaluationPlan, LearnerSection
from controller.admission import Admission, AdmissionSettings
from learner.data.groups import GroupBuffer
from protocol.messages import EpisodeKey, Trajectory
from telemetry.probes.spans import read_spans

Draw = Callable[[random.Random], float]
"""Seconds of an episode."""

CASES = ((1, 64), (1, 128), (4, 64), (4, 256))
"""Largest staleness, and actors."""
WINDOWS = (0, 1, 2, 4)
"""Values of learner.order_window."""
UPDATE_SHARE = 1 / 8


@dataclass(frozen=True)
class Outcome:
    seconds: float  # of an update, as a multiple of an episode's mean
    wait: float  # of it, that the learner waits
    age: float  # mean, in versions, since admission
    oldest: int


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.order", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--updates", type=int, default=400, help="default %(default)s")
    parser.add_argument(
        "--run", type=Path, help="a run's directory: episodes take as long as in it"
    )
    parser.add_argument("--quick", action="store_true", help="60 updates")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    updates = 60 if options.quick else options.updates
    usual = recorded(options.run) if options.run else gamma
    rows = []
    for name, draw in (
        ("as recorded" if options.run else "usual", usual),
        ("with stragglers", with_stragglers(usual)),
    ):
        for staleness, actors in CASES:
            for window in WINDOWS:
                settings = LearnerSection(max_staleness=staleness, order_window=window)
                outcome = simulate(settings, actors, updates, draw)
                rows.append(
                    {
                        "episodes": name,
                        "max_staleness": staleness,
                        "actors": actors,
                        "window": window,
                        **vars(outcome),
                    }
                )
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def gamma(rng: random.Random) -> float:
    return rng.gammavariate(9.0, 1 / 9)


def with_stragglers(usual: Draw) -> Draw:
    def draw(rng: random.Random) -> float:
        seconds = usual(rng)
        if rng.random() < 1 / 500:
            seconds *= min(100.0, 10 * rng.paretovariate(1.0))
        return seconds

    return draw


def recorded(run: Path) -> Draw:
    """Draw episodes as long as in a run, over their mean.

    An episode is from the first turn's beginning to the last one's end.
    """
    tracks: dict[str, list[tuple[float, float]]] = {}
    for spans in read_spans(run).values():
        for span in spans:
            if span["track"].startswith("t"):  # a training episode
                tracks.setdefault(span["track"], []).append((span["start"], span["end"]))
    seconds = [
        max(end for _, end in turns) - min(start for start, _ in turns) for turns in tracks.values()
    ]
    if not seconds:
        raise SystemExit(f"--run: {run} has no spans of episodes")
    mean = sum(seconds) / len(seconds)
    return lambda rng: rng.choice(seconds) / mean


Playing = tuple[float, int, int]
"""An episode under way: when it ends, its group and its member."""


def simulate(settings: LearnerSection, actors: int, updates: int, draw: Draw) -> Outcome:
    """A run with so many actors, which play an episode at a time."""
    rng = random.Random(0)
    size = settings.group_size
    groups = settings.groups_per_update
    admission = Admission(
        AdmissionSettings(
            groups,
            size,
            settings.max_staleness,
            1,
            seed=0,
            train_size=1,
            held_out_size=1,
            evaluation=EvaluationPlan(()),
        )
    )
    buffer = GroupBuffer(size, window=settings.window())
    admission.start(0, [], updates)
    now = waited = 0.0
    free = actors
    version = 0
    ready_at = 0.0
    seconds_update = UPDATE_SHARE * groups * size / min(actors, groups * size)
    admitted_at: dict[int, int] = {}
    ages: list[int] = []
    playing: list[Playing] = []
    while len(ages) < updates * groups:
        for group in range(len(admitted_at), admission.next_group):
            admitted_at[group] = version
        while free:
            lease = admission.lease(b"")
            if lease is None:
                break
            free -= 1
            heappush(playing, (now + draw(rng), lease.key.group, lease.key.member))
        batch = buffer.pop_batch(groups)
        if batch is not None:
            ages += [version - admitted_at[group] for group in batch[0]]
            waited += now - ready_at
            ready_at = now + seconds_update
            version += 1
            while playing and playing[0][0] <= ready_at:  # actors play on meanwhile
                now, free = arrive(playing, admission, buffer, free, rng, draw)
            now = ready_at
            admission.hold_until_applied(version, batch[0])
            admission.free_slots(version)
            continue
        now, free = arrive(playing, admission, buffer, free, rng, draw)
    return Outcome(now / updates, waited / now, sum(ages) / len(ages), max(ages))


def arrive(
    playing: list[Playing],
    admission: Admission,
    buffer: GroupBuffer,
    free: int,
    rng: random.Random,
    draw: Draw,
) -> tuple[float, int]:
    """End the next episode, whose actor plays another, if there is one.

    Returns when that is, and how many actors have none.
    """
    now, group, member = heappop(playing)
    buffer.add(
        Trajectory(
            key=EpisodeKey(group, member),
            lease_attempt=0,
            task_index=0,
            task_type="",
            task="",
            success=True,
            turns=[],
        )
    )
    buffer.collect_complete()
    lease = admission.lease(b"")
    if lease is None:
        return now, free + 1
    heappush(playing, (now + draw(rng), lease.key.group, lease.key.member))
    return now, free


def show(rows: list[dict]) -> None:
    table = Table(
        "episodes",
        "max_staleness",
        "actors",
        "order_window",
        "an update",
        "speed-up",
        "learner waits",
        "mean age",
        "oldest",
    )
    for row in rows:
        strict = next(
            other
            for other in rows
            if other["window"] == 0
            and all(other[name] == row[name] for name in ("episodes", "max_staleness", "actors"))
        )
        table.add_row(
            row["episodes"],
            str(row["max_staleness"]),
            str(row["actors"]),
            f"{row['window']:g}",
            f"{row['seconds']:.2f}",
            f"{strict['seconds'] / row['seconds']:.2f}",
            f"{row['wait']:.0%}",
            f"{row['age']:.2f}",
            str(row["oldest"]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
