"""Does control help?

The same policy, from the same warm start, trained on as many generated tokens in each mode of
control.

`python -m benchmarks.control_study DIR [--env NAMES] [--modes NAMES] [--seeds N] [--tokens N]
[--quick] [--json FILE]`

Runs one after the other; their figures are lines of DIR/results.jsonl, and those that are there are
not made again, so a study that was interrupted goes on. The warm start is made once a seed and kept
in DIR. The budget counts what was generated for the batches, rejected attempts included; the wall
time stands beside it. Success is of held-out tasks, at the end; its interval is Wilson's for the
pooled games of all seeds, which says nothing of how seeds differ: each seed's figure stands beside
it.
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

MODES = ("off", "budget", "void", "t2po-token", "t2po-turn", "t2po")
TOKENS = {"alfworld": 150_000, "webshop": 250_000, "search": 250_000}
"""Environment -> budget of a run, in tokens.

In ALFWorld it is eight updates, so that no mode has reached the ceiling.
"""
BUDGET = {"alfworld": 19, "webshop": 19, "search": 21}
"""Environment -> thinking tokens of mode `budget`.

It is about the 95th percentile of the thoughts of a warm-started policy (seed 0, training tasks),
so that as many are cut as by the others.
"""
GAMES = 128
MEANS = ("updates", "tokens", "seconds", "wasted", "turns", "thinking", "cut", "again")


@dataclass(frozen=True)
class Cell:
    """A run of the study."""

    env: str
    mode: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.env}-{self.mode}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.control_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("dir", type=Path, help="where results.jsonl and what is under way are kept")
    parser.add_argument(
        "--env", default=",".join(TOKENS), help="environments (default %(default)s)"
    )
    parser.add_argument(
        "--modes", default=",".join(MODES), help="modes of control (default %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds 0 ... N-1 (default %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=0,
        help="generated for the batches of a run (default: by environment)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two modes, one seed, a few updates of a policy that knows nothing",
    )
    parser.add_argument("--json", type=Path, help="write the table's figures to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.env = "alfworld"
        options.modes = "off,t2po"
        options.seeds = 1
    cells = [
        Cell(*cell)
        for cell in itertools.product(
            options.env.split(","), options.modes.split(","), range(options.seeds)
        )
    ]
    cells.sort(key=lambda cell: (cell.env, cell.seed, MODES.index(cell.mode)))
    make = lambda cell, label, console: run(cell, options, label, console)  # noqa: E731
    studies.conduct(options.dir, cells, make, pooled, table, options.json)


def run(cell: Cell, options: argparse.Namespace, label: str, console: Console) -> dict:
    """Make the run; its figures. All of a seed begin with one warm-started policy."""
    if options.quick:
        start = ["--env", cell.env, "--seed", str(cell.seed), "--warm_start.episodes", "0"]
        length = ["--updates", "2", "--learner.groups_per_update", "2", "--learner.group_size", "4"]
    else:
        start = studies.warm_start(options.dir, cell.env, cell.seed, label, console)
        length = [
            "--tokens",
            str(options.tokens or TOKENS[cell.env]),
            "--minutes",
            "60",
            "--updates",
            "100000",
        ]
    console.print(f"{label} {cell.name}", highlight=False)
    control = ["--control", cell.mode] + (
        ["--control.max_thinking", str(BUDGET[cell.env])] if cell.mode == "budget" else []
    )
    return outcome(
        studies.run(
            options.dir / cell.name, [*start, *length, *control, "--eval.episodes", str(GAMES)]
        )
    )


def outcome(records: studies.Records) -> dict:
    """The figures of a run."""
    summary, updates, evaluations = records
    turns = max(1.0, sum(line["turns"] * line["episodes"] for line in updates))
    return {
        "success": [(line["update"], line["success"]) for line in evaluations],
        "updates": len(updates),
        "curve": [
            (line["training_tokens"], line["success"]) for line in updates
        ],  # of training episodes
        "tokens": updates[-1]["training_tokens"],
        "seconds": updates[-1]["wall_seconds"] - evaluations[0]["wall_seconds"],
        "wasted": summary["wasted_tokens"] / max(1, summary["generated_tokens"]),
        "solved": sum(line["success"] * line["episodes"] for line in updates),  # training episodes
        "turns": mean(line["turns"] for line in updates[-10:]),
        "thinking": mean(line["thinking_tokens"] for line in updates[-10:]),
        "cut": summary["interventions"] / turns,
        "again": summary["resamples"] / turns,
        "epsilon": updates[-1].get("epsilon"),
        "eta": updates[-1].get("eta"),
    }


def pooled(outcomes: Sequence[dict]) -> Iterator[dict]:
    """A row of figures for each environment and mode, over its seeds."""
    order = sorted(outcomes, key=lambda run: (run["env"], MODES.index(run["mode"]), run["seed"]))
    for (env, mode), group in itertools.groupby(order, key=lambda run: (run["env"], run["mode"])):
        runs = list(group)
        last = [run["success"][-1][1] for run in runs]
        yield {
            "env": env,
            "mode": mode,
            "first": [run["success"][0][1] for run in runs],
            "last": last,
            "interval": wilson_interval(mean(last), GAMES * len(last)),
            "tokens_per_success": sum(run["tokens"] for run in runs)
            / max(1.0, sum(run["solved"] for run in runs)),
            "collapsed": sum(
                has_collapsed([{"success": share} for _, share in run["success"]]) or False
                for run in runs
            ),
            **{name: mean(run[name] for run in runs) for name in MEANS},
        }


def table(rows: Sequence[dict]) -> Table:
    """As in docs/measurements/control.md."""
    names = (
        "environment",
        "control",
        "at the start",
        "at the end",
        "95 %",
        "updates",
        "tokens",
        "minutes",
        "wasted",
    )
    out = Table(*names, "tokens a success", "turns", "thinking", "cut", "again", "collapsed")
    for row in rows:
        low, high = row["interval"]
        out.add_row(
            *(row["env"], row["mode"], studies.shares(row["first"])),
            *(f"{mean(row['last']):.1%} ({studies.shares(row['last'])})", f"{low:.0%}-{high:.0%}"),
            *(
                f"{row['updates']:.0f}",
                f"{row['tokens']:,.0f}",
                f"{row['seconds'] / 60:.1f}",
                f"{row['wasted']:.1%}",
            ),
            *(f"{row['tokens_per_success']:.0f}", f"{row['turns']:.1f}", f"{row['thinking']:.1f}"),
            *(f"{row['cut']:.1%}", f"{row['again']:.1%}", str(row["collapsed"])),
        )
    return out


if __name__ == "__main__":
    main()
