"""`python run.py sweep DIR`: a run for each combination of settings and each seed, one after the
other or a few at a time, and a table.

A setting with several values, separated by commas, is varied; all others hold for every run. What
is finished is not made again, and what was begun is resumed, so the same command goes on after an
interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from config import ConfigError
from config.options import SHORT_NAMES, all_settings, kind_of
from config.resolve import full_name, resolve
from protocol.files import atomic_write
from protocol.output import drop_unread_output
from supervisor.cli.sweep_tables import effects_table, figures, rows_table
from supervisor.interrupts import on_interrupt
from supervisor.job import build_environment, lock_directory
from supervisor.process import ChildProcess, log_tail, spawn, stop_all
from telemetry.analysis.compare_runs import compare_runs
from telemetry.analysis.effects import compute_effects
from telemetry.html.sweep_page import render_sweep
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind

PLAN = "sweep.json"
FIGURES = "figures.json"
PAGE = "sweep.html"
TICK = 0.5
CHECKPOINT_SECONDS = 60.0
"""So long a run may take to finish its update and write a checkpoint, where the sweep has
failed."""
OWN = ("run.dir", "run.seed")
"""Settings that a sweep gives to its runs."""


@dataclass(frozen=True)
class Cell:
    """One run: the values of what is varied (short name -> text), and its seed."""

    values: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        return ",".join(
            f"{name}={value.replace('/', '-')}"
            for name, value in (*self.values, ("seed", str(self.seed)))
        )


@dataclass(frozen=True)
class Plan:
    """What is run: settings that are varied and those that are not, both full name -> text."""

    varied: dict[str, list[str]]
    fixed: dict[str, str]
    seeds: int

    def cells(self) -> list[Cell]:
        """All runs; those of one seed, which share a warm start, together."""
        short = {full: name for name, full in SHORT_NAMES.items()}
        names = [short.get(full, full) for full in self.varied]
        combinations = list(itertools.product(*self.varied.values()))
        return [
            Cell(tuple(zip(names, values, strict=True)), seed)
            for seed in range(self.seeds)
            for values in combinations
        ]

    def arguments(self, cell: Cell) -> dict[str, str]:
        """The settings of a run."""
        return (
            self.fixed
            | {full_name(name): value for name, value in cell.values}
            | {"run.seed": str(cell.seed)}
        )


def plan(overrides: Mapping[str, str], seeds: int) -> Plan:
    """What the command line asks for.

    ConfigError for a setting that does not exist, or that a sweep sets itself, or a combination
    that cannot be run.
    """
    known = all_settings()
    varied = {}
    fixed = {}
    for name, text in overrides.items():
        full = full_name(name)
        if full in OWN:
            raise ConfigError(
                f"sweep: {full} is set for each run; "
                f"{'use --seeds N' if full == 'run.seed' else 'DIR is where they are'}"
            )
        values = [value.strip() for value in text.split(",")]
        is_list = full in known and isinstance(kind_of(known[full]), msgspec.inspect.ListType)
        if len(values) > 1 and not is_list:
            if len(set(values)) < len(values):
                raise ConfigError(f"sweep: {full} has a value twice: {text}")
            varied[full] = values
        else:
            fixed[full] = text
    found = Plan(varied, fixed, seeds)
    environments = {}
    for cell in found.cells():
        try:
            config = resolve(None, found.arguments(cell))
        except ConfigError as error:
            raise ConfigError(f"sweep: {cell.name}: {error}") from None
        environments[msgspec.json.encode([config.env.name, config.environment_settings()])] = config
    for config in environments.values():
        build_environment(config)
    return found


def sweep(directory: Path, planned: Plan, slots: int, console: Console) -> int:
    """Make the runs and show the table; 0 if all are finished, 1 if one failed, 130 after Ctrl-C.

    ConfigError for a directory with another sweep, or one whose runs another process makes.
    """
    cells = planned.cells()
    with _claimed(directory, planned):
        failed, interrupted = asyncio.run(_make_all(directory, planned, cells, slots, console))
    for cell, words in failed.items():
        console.print(f"{cell.name} failed\n{words}", highlight=False, markup=False, soft_wrap=True)
    finished = [cell for cell in cells if is_finished(directory / cell.name)]
    if finished:
        _show(directory, finished, console)
        console.print(
            f"{len(finished)} of {len(cells)} runs; {directory / PAGE}",
            highlight=False,
            soft_wrap=True,
        )
    return 130 if interrupted else int(bool(failed))


def _show(directory: Path, finished: Sequence[Cell], console: Console) -> None:
    """What the runs came to: in the terminal, as a page, and as figures."""
    runs = [
        (dict(cell.values), cell.seed, read_metrics(directory / cell.name / METRICS_FILE))
        for cell in finished
    ]
    rows = compare_runs([(values, records) for values, _, records in runs])
    changes = compute_effects(runs)
    wide = Console(width=max(170, console.width))
    wide.print(rows_table(rows))
    if changes:
        wide.print(effects_table(changes))
    atomic_write(directory / FIGURES, json.dumps(figures(rows, changes), indent=1))
    atomic_write(directory / PAGE, render_sweep(directory.resolve().name, rows, changes))


@contextlib.contextmanager
def _claimed(directory: Path, planned: Plan) -> Iterator[None]:
    """The directory is this sweep's: it may have more values or seeds than before, but what is not
    varied must hold for all runs. While inside, it is this process's alone."""
    file = directory / PLAN
    if file.exists():
        before = json.loads(file.read_text())
        if before["fixed"] != planned.fixed or list(before["varied"]) != list(planned.varied):
            raise ConfigError(
                f"sweep: {directory} has runs of another sweep ({file} says of which); give "
                "another directory"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise ConfigError(
            f"sweep: {directory} is not empty, and no sweep's; give another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_directory(directory)
    except BlockingIOError:
        raise ConfigError(
            f"sweep: the runs in {directory} are being made; wait until that has ended, or give "
            "another directory"
        ) from None
    try:
        atomic_write(
            file,
            json.dumps(
                {"varied": planned.varied, "fixed": planned.fixed, "seeds": planned.seeds}, indent=1
            ),
        )
        yield
    finally:
        os.close(lock)


async def _make_all(
    directory: Path, planned: Plan, cells: Sequence[Cell], slots: int, console: Console
) -> tuple[dict[Cell, str], bool]:
    """Start runs as there is room, until all have ended.

    (What failed, with its last words; whether the user interrupted.)
    """
    waiting = [cell for cell in cells if not is_finished(directory / cell.name)]
    running: dict[Cell, ChildProcess] = {}
    failed: dict[Cell, str] = {}
    stop = _Stop(running, console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
    )
    try:
        bar = Progress(*columns, console=console, transient=True)
        with on_interrupt(stop), drop_unread_output(), bar as progress:
            everything = progress.add_task(
                "runs", total=len(cells), completed=len(cells) - len(waiting)
            )
            bars = {}
            while running or (waiting and not stop.asked):
                while waiting and len(running) < slots and not stop.asked:
                    cell = waiting.pop(0)
                    running[cell] = _start(
                        directory / cell.name, planned.arguments(cell), alone=slots == 1
                    )
                    bars[cell] = progress.add_task(
                        cell.name, total=resolve(None, planned.arguments(cell)).run.max_updates
                    )
                for cell, child in list(running.items()):
                    progress.update(bars[cell], completed=updates_so_far(directory / cell.name))
                    if child.ended:
                        del running[cell]
                        progress.remove_task(bars.pop(cell))
                        progress.advance(everything)
                        if not is_finished(directory / cell.name) and not stop.asked:
                            failed[cell] = log_tail(child.log)
                await asyncio.sleep(TICK)
    finally:
        stop_all(list(running.values()), patience_s=CHECKPOINT_SECONDS)
    return failed, stop.asked


class _Stop:
    """The first Ctrl-C lets the runs finish their updates and write checkpoints; a second one stops
    at once."""

    def __init__(self, running: Mapping[Cell, ChildProcess], console: Console) -> None:
        self.asked = False
        self._running = running
        self._console = console

    def __call__(self) -> None:
        if not self.asked:
            self._console.print(
                "Interrupted: the runs finish their updates and write checkpoints. Ctrl-C again "
                "stops at once. "
                "The same command goes on with them."
            )
        self.asked = True
        for child in self._running.values():
            child.signal(signal.SIGINT)


def _start(run_dir: Path, arguments: Mapping[str, str], alone: bool) -> ChildProcess:
    """Begin the run, or resume it if it has begun.

    Runs that are not `alone` do not wait for their own threads by spinning, which keeps others from
    their cores: a warm start beside another one is then 2.5 times as fast
    (docs/measurements/performance.md).
    """
    log = run_dir.with_name(f"{run_dir.name}.log")
    environment = {} if alone else {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if (run_dir / "config.toml").exists():
        return spawn(run_dir.name, ["run", "--resume", str(run_dir)], log, environment)
    shutil.rmtree(run_dir, ignore_errors=True)
    return spawn(
        run_dir.name,
        [
            "run",
            *(f"--{name}={value}" for name, value in arguments.items()),
            f"--run.dir={run_dir}",
        ],
        log,
        environment,
    )


def is_finished(run_dir: Path) -> bool:
    """Whether a run has ended by itself."""
    summary = run_dir / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["ended"] == "finished"


def updates_so_far(run_dir: Path) -> int:
    """Of a run that may not have begun."""
    file = run_dir / METRICS_FILE
    return _updates_in(file, file.stat().st_size) if file.exists() else 0


@lru_cache
def _updates_in(file: Path, size: int) -> int:
    """Read again only when there is more."""
    return len(select_kind(read_metrics(file), "update"))
