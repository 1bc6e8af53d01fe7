"""Does control help? The same policy, from the same warm start, trained for the same wall time in each mode of control.

`python -m benchmarks.control_study DIR [--env NAMES] [--modes NAMES] [--seeds N] [--minutes M] [--quick] [--json FILE]`

Runs one after the other, on a machine that does nothing else; those whose summary is in DIR already are not made again, so a study that was
interrupted goes on. The warm start is made once a seed and kept in DIR. Success is of held-out tasks, at the end; its interval is Wilson's
for the pooled games of all seeds, which says nothing of how seeds differ: each seed's figure stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODES = ("off", "budget", "void", "t2po-token", "t2po-turn", "t2po")
GAMES = 128
COLLAPSE = 0.5
"""A run has collapsed if it ends below this share of its best evaluation."""


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_study", description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="where the runs are kept")
    parser.add_argument("--env", default="alfworld,webshop,search", help="environments (default %(default)s)")
    parser.add_argument("--modes", default=",".join(MODES), help="modes of control (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 ... N-1 (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, after the warm start (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two modes, one seed, a few updates of a policy that knows nothing")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.env, options.modes, options.seeds = "alfworld", "off,t2po", 1
    cells = [Cell(*cell) for cell in itertools.product(options.env.split(","), options.modes.split(","), range(options.seeds))]
    console = Console()
    for number, cell in enumerate(sorted(cells, key=lambda cell: (cell.env, cell.seed, MODES.index(cell.mode))), 1):
        run(cell, options, f"[{number}/{len(cells)}]", console)
    rows = list(results(cells, options.dir))
    Console(width=max(180, console.width)).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def run(cell: Cell, options: argparse.Namespace, label: str, console: Console) -> None:
    """Make the run unless it is there. The first one of a seed makes the warm start, whose time is not counted in any."""
    directory = options.dir / cell.name
    if (directory / "summary.json").exists():
        return
    cache = options.dir / "cache"
    warm = options.dir / f"warm-{cell.env}-{cell.seed}"
    if not options.quick and not (warm / "summary.json").exists():
        console.print(f"{label} warm start of {cell.env}, seed {cell.seed}", highlight=False)
        _start(cell, warm, [*_quiet(cache), "--updates", "0", "--minutes", "60"])
    console.print(f"{label} {cell.name}", highlight=False)
    small = ["--warm_start.episodes", "0", "--updates", "2", "--learner.groups", "2", "--learner.group_size", "4"]
    _start(cell, directory, [*_quiet(cache), *(small if options.quick else ["--minutes", str(options.minutes), "--updates", "10000"])])


def _quiet(cache: Path) -> list[str]:
    return ["--run.cache_dir", str(cache), "--eval.episodes", str(GAMES)]


def _start(cell: Cell, directory: Path, arguments: Sequence[str]) -> None:
    """A run in a process of its own. CalledProcessError, with its output, if it fails."""
    command = [sys.executable, "run.py", "--env", cell.env, "--control", cell.mode, "--seed", str(cell.seed), "--run-dir", str(directory)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{cell.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def results(cells: Sequence[Cell], directory: Path) -> Iterator[dict]:
    """A row of figures for each environment and mode."""
    for (env, mode), group in itertools.groupby(sorted(cells, key=lambda c: (c.env, MODES.index(c.mode))), key=lambda c: (c.env, c.mode)):
        runs = [directory / cell.name for cell in group]
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
        updates = [line for run in lines for line in run if line["kind"] == "update"]
        best = [max(line["success"] for line in run if line["kind"] == "evaluation") for run in lines]
        last = [summary["success_last"] for summary in summaries]
        generated = sum(summary["generated_tokens"] for summary in summaries)
        yield {
            "env": env,
            "mode": mode,
            "first": [summary["success_first"] for summary in summaries],
            "last": last,
            "interval": wilson(sum(last) / len(last), GAMES * len(last)),
            "updates": mean(summary["updates"] for summary in summaries),
            "tokens": generated / len(summaries),
            "wasted": sum(summary["wasted_tokens"] for summary in summaries) / max(1, generated),
            "tokens_per_success": mean(summary["tokens_per_success"] or 0.0 for summary in summaries),
            "turns": mean(line["turns"] for line in updates[-10:]),
            "thinking": mean(line["thinking_tokens"] for line in updates[-10:]),
            "interventions": sum(summary["interventions"] for summary in summaries) / max(1.0, _turns(updates)),
            "resamples": sum(summary["resamples"] for summary in summaries) / max(1.0, _turns(updates)),
            "collapsed": sum(end < COLLAPSE * top for end, top in zip(last, best, strict=True)),
        }


def _turns(updates: Sequence[dict]) -> float:
    return sum(line["turns"] * line["episodes"] for line in updates)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson 1927)."""
    centre = share + z * z / (2 * count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)


def table(rows: Sequence[dict]) -> Table:
    """As in docs/control.md."""
    names = ("environment", "control", "at the start", "at the end", "95 %", "updates", "tokens", "wasted", "tokens a success", "turns")
    out = Table(*names, "thinking", "cut", "again", "collapsed")
    for row in rows:
        low, high = row["interval"]
        shares = [f"{row[name]:.1%}" for name in ("interventions", "resamples")]
        out.add_row(
            *(row["env"], row["mode"], _shares(row["first"])),
            *(f"{mean(row['last']):.1%} ({_shares(row['last'])})", f"{low:.0%}-{high:.0%}"),
            *(f"{row['updates']:.0f}", f"{row['tokens']:,.0f}", f"{row['wasted']:.1%}", f"{row['tokens_per_success']:.0f}"),
            *(f"{row['turns']:.1f}", f"{row['thinking']:.1f}", *shares, str(row["collapsed"])),
        )
    return out


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in values)


if __name__ == "__main__":
    main()
