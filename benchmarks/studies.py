"""Tools that studies of whole runs share.

They are cells that are made once and kept, runs in processes of their own, and intervals.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from protocol.lifetime import dying_with_parent

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "results.jsonl"
"""A line for each cell: its fields, and what it brought."""

Cell = TypeVar("Cell", bound="DataclassInstance")
"""A frozen dataclass: what a run of the study differs in from the others."""


class Records(NamedTuple):
    """Records that a run left."""

    summary: dict
    updates: list[dict]
    evaluations: list[dict]


def conduct(
    directory: Path,
    cells: Sequence[Cell],
    make: Callable[[Cell, str, Console], dict],
    rows_of: Callable[[list[dict]], Iterable[dict]],
    table: Callable[[Sequence[dict]], Table],
    json_file: Path | None,
) -> None:
    """Make the cells that have not been made, in this order, and print the table of all.

    `make`: (cell, "[3/80]", console) -> outcome.
    """
    console = Console()
    directory.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, 1):
        if cell not in results(directory, type(cell)):
            keep(directory, cell, make(cell, f"[{number}/{len(cells)}]", console))
    rows = list(
        rows_of(
            [found for cell, found in results(directory, type(cells[0])).items() if cell in cells]
        )
    )
    Console(width=max(180, console.width)).print(table(rows))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))


def results(directory: Path, kind: type[Cell]) -> dict[Cell, dict]:
    """Read what the cells have brought so far."""
    file = directory / RESULTS
    names = [field.name for field in fields(kind)]
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {kind(**{name: line[name] for name in names}): line for line in lines}


def keep(directory: Path, cell: DataclassInstance, outcome: dict) -> None:
    """Write down what a cell has brought."""
    with (directory / RESULTS).open("a") as file:
        file.write(json.dumps(asdict(cell) | outcome) + "\n")


def run(directory: Path, arguments: Sequence[str]) -> Records:
    """`python run.py ARGUMENTS` in `directory`, which is removed afterwards.

    Ends the study, with the run's output, if it fails.
    """
    shutil.rmtree(directory, ignore_errors=True)  # of a study that was interrupted
    command = [sys.executable, "run.py", "--run-dir", str(directory), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=dying_with_parent()
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    by_kind = {
        kind: [line for line in lines if line["kind"] == kind] for kind in ("update", "evaluation")
    }
    records = Records(
        json.loads((directory / "summary.json").read_text()),
        by_kind["update"],
        by_kind["evaluation"],
    )
    shutil.rmtree(directory)
    return records


def warm_start(directory: Path, env: str, seed: int, label: str, console: Console) -> list[str]:
    """Return arguments by which runs find the policy that `seed` warm-starts for `env`.

    It is made now if it has not been made.
    """
    cache = ["--run.cache_dir", str(directory / "cache"), "--env", env, "--seed", str(seed)]
    made = directory / f"warm-{env}-{seed}"
    if not made.exists():
        console.print(f"{label} warm start of {env}, seed {seed}", highlight=False)
        run(
            directory / "warming",
            [*cache, "--updates", "0", "--minutes", "60", "--eval.episodes", "2"],
        )
        made.touch()
    return cache


def shares(values: Sequence[float]) -> str:
    """Per cent, for a table."""
    return ", ".join(f"{100 * value:.0f}" for value in values)
