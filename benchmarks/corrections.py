"""Compare off-policy corrections at each staleness.

The default job, with weights that reach the engine a given number of updates late.

`python -m benchmarks.corrections DIR [--staleness 0,1,2,4,8] [--corrections NAMES] [--seeds N]
[--updates N] [--quick] [--json FILE]`

Runs one after the other; their figures are lines of DIR/results.jsonl, and those that are there are
not made again. All of a seed begin with one warm-started policy and make as many updates without
control; with staleness S every trained token, but for those of the first S updates, is S versions
old (learner.publish_lag). Success is of held-out tasks, at the end.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks import studies
from telemetry.analysis.collapse import has_collapsed
from telemetry.analysis.intervals import wilson_interval

CORRECTIONS = ("none", "ppo", "decoupled", "tis", "mis", "gspo", "cispo", "vtrace")
LOSSES = {"none": "reinforce"}
"""Correction of the study -> its `learner.loss`, where they differ in name."""
OPTIONS = {
    "gspo": [
        "--learner.loss.clip_low",
        "3e-4",
        "--learner.loss.clip_high",
        "4e-4",
        "--learner.loss_reduction",
        "turn",
    ],
    "vtrace": ["--algorithm", "gae"],
}
"""Loss -> options that belong to it as its paper has it; vtrace has other advantages, too."""
UPDATES = 16
GAMES = 128


@dataclass(frozen=True)
class Cell:
    """A run of the study."""

    correction: str
    staleness: int
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corrections", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("dir", type=Path, help="where results.jsonl and what is under way are kept")
    parser.add_argument("--staleness", default="0,1,2,4,8", help="versions (default %(default)s)")
    parser.add_argument("--corrections", default=",".join(CORRECTIONS), help="default %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=2, help="seeds 0 ... N-1 (default %(default)s)"
    )
    parser.add_argument(
        "--updates", type=int, default=UPDATES, help="of each run (default %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two corrections, one staleness, of a policy that knows nothing",
    )
    parser.add_argument("--json", type=Path, help="write the table's figures to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.corrections = "none,tis"
        options.staleness = "1"
        options.seeds = 1
        options.updates = 2
    names = options.corrections.split(",")
    ages = [int(age) for age in options.staleness.split(",")]
    cells = [Cell(*cell) for cell in itertools.product(names, ages, range(options.seeds))]
    cells.sort(key=lambda cell: (cell.seed, cell.staleness))
    make = lambda cell, label, console: run(cell, options, label, console)  # noqa: E731
    studies.conduct(options.dir, cells, make, pooled, table, options.json)


def run(cell: Cell, options: argparse.Namespace, label: str, console: Console) -> dict:
    """Make the run; its figures."""
    if options.quick:
        start = ["--env", "alfworld", "--seed", str(cell.seed), "--warm_start.episodes", "0"]
        start += [
            "--learner.groups_per_update",
            "2",
            "--learner.group_size",
            "4",
            "--eval.episodes",
            "4",
        ]
    else:
        start = [
            *studies.warm_start(options.dir, "alfworld", cell.seed, label, console),
            "--eval.episodes",
            str(GAMES),
        ]
    console.print(
        f"{label} {cell.correction}, {cell.staleness} versions old, seed {cell.seed}",
        highlight=False,
    )
    age = [f"--learner.{name}={cell.staleness}" for name in ("max_staleness", "publish_lag")]
    length = [
        "--updates",
        str(options.updates),
        "--minutes",
        "60",
        "--eval.every",
        "0",
        "--control",
        "off",
    ]
    correction = [
        "--learner.loss",
        LOSSES.get(cell.correction, cell.correction),
        *OPTIONS.get(cell.correction, []),
    ]
    return outcome(studies.run(options.dir / "running", [*start, *age, *length, *correction]))


def outcome(records: studies.Records) -> dict:
    """The figures of a run; of its updates, the second half."""
    late = records.updates[len(records.updates) // 2 :]
    of_late = lambda name: mean(line.get(name) or 0.0 for line in late)  # noqa: E731
    return {
        "success": [line["success"] for line in records.evaluations],
        "curve": [line["success"] for line in records.updates],  # of training episodes
        "age": of_late("token_age_mean"),
        "ess": of_late("effective_sample_size"),
        "ratio_p99": of_late("ratio_p99"),
        "clipped": of_late("clip_fraction"),
        "masked": of_late("masked_share"),
        "grad_norm": of_late("grad_norm"),
        "signs": sorted(records.summary["signs"]),
    }


FIGURES = ("age", "ess", "ratio_p99", "clipped", "masked", "grad_norm")


def pooled(outcomes: Sequence[dict]) -> Iterator[dict]:
    """A row of figures for each staleness and correction, over its seeds."""
    place = lambda run: (run["staleness"], CORRECTIONS.index(run["correction"]))  # noqa: E731
    for (staleness, number), group in itertools.groupby(sorted(outcomes, key=place), key=place):
        runs = list(group)
        last = [run["success"][-1] for run in runs]
        yield {
            "staleness": staleness,
            "correction": CORRECTIONS[number],
            "first": [run["success"][0] for run in runs],
            "last": last,
            "interval": wilson_interval(mean(last), GAMES * len(last)),
            "collapsed": sum(
                bool(has_collapsed([{"success": share} for share in run["success"]]))
                for run in runs
            ),
            "signs": sorted({sign for run in runs for sign in run["signs"]}),
            **{name: mean(run[name] for run in runs) for name in FIGURES},
        }


def table(rows: Sequence[dict]) -> Table:
    """As in docs/measurements/corrections.md."""
    out = Table(
        "versions old",
        "correction",
        "at the start",
        "at the end",
        "95 %",
        "age",
        "ESS",
        "pi/mu p99",
        "clipped",
        "masked",
        "signs",
    )
    for row in rows:
        low, high = row["interval"]
        out.add_row(
            *(str(row["staleness"]), row["correction"], studies.shares(row["first"])),
            *(f"{mean(row['last']):.1%} ({studies.shares(row['last'])})", f"{low:.0%}-{high:.0%}"),
            *(
                f"{row['age']:.2f}",
                f"{row['ess']:.2f}",
                f"{row['ratio_p99']:.2f}",
                f"{row['clipped']:.1%}",
                f"{row['masked']:.1%}",
            ),
            ", ".join(row["signs"] + ["collapsed"] * bool(row["collapsed"])) or "-",
        )
    return out


if __name__ == "__main__":
    main()
