"""`python run.py sweep DIR`: a run for each combination of settings and each seed, and a table.

A setting with several values, separated by commas, is varied; all others hold for every run. Runs
are made one after the other, or a few at a time. What is finished is not made again, and what was
begun is resumed, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
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
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from config import Config, ConfigError, EnvSection
from config.options import SHORT_NAMES, all_settings, environment_fields, kind_of, this_command
from config.recipes import RECIPE_OPTION
from config.resolve import full_name, parse_overrides, resolve
from config.sets import set_fields, set_names
from protocol.files import atomic_write
from protocol.output import drop_unread_output
from supervisor.cli.sweep_tables import build_figures, print_tables
from supervisor.interrupts import on_interrupt
from supervisor.job import build_environment, check_sets, lock_directory
from supervisor.process import ChildProcess, log_tail, spawn, stop_all
from telemetry.analysis.compare_runs import compare_runs
from telemetry.analysis.effects import compute_effects
from telemetry.format import format_duration
from telemetry.html.sweep_page import render_sweep
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind

RECIPE_JOINT = "+"
"""Sign between recipes that go together: commas separate the values of what is varied."""

PLAN_FILE = "sweep.json"
FIGURES_FILE = "figures.json"
PAGE_FILE = "sweep.html"

TICK_S = 0.5

CHECKPOINT_PATIENCE_S = 60.0
"""Time for a run to finish its update and write a checkpoint, where the sweep has failed."""

SET_FOR_EACH_RUN = {"run.dir": "DIR is where they are", "run.seed": "use --seeds N"}
"""Settings that a sweep gives to its runs -> what to give instead."""

SENTENCES = ("model.system_prompt",)
"""Settings whose values have commas of their own."""


@dataclass(frozen=True)
class Cell:
    """One run: the values of what is varied (short name -> text), and its seed."""

    values: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        pairs = (*self.values, ("seed", str(self.seed)))
        return ",".join(f"{name}={value.replace('/', '-')}" for name, value in pairs)


@dataclass(frozen=True)
class Plan:
    """The settings of a sweep that are varied and those that are not, both full name -> text."""

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
        """The settings of a run; commas separate its recipes again, and no longer values."""
        varied = {full_name(name): value for name, value in cell.values}
        settings = self.fixed | varied | {"run.seed": str(cell.seed)}
        if RECIPE_OPTION in settings:
            settings[RECIPE_OPTION] = settings[RECIPE_OPTION].replace(RECIPE_JOINT, ",")
        return settings

    def config(self, cell: Cell) -> Config:
        return resolve(None, self.arguments(cell))


def main(arguments: list[str]) -> int:
    """Make the runs of a sweep, or go on with them, and compare them."""
    parser = argparse.ArgumentParser(
        prog="run.py sweep",
        usage=(
            f"{this_command()} sweep DIR --SETTING VALUE,VALUE,... [--SETTING VALUE ...] "
            "[--seeds N] [--slots N] [--dry-run]"
        ),
        description=(
            "A run for each combination of settings and each seed, in DIR, and a table of their "
            "measures. Any setting of a run may follow; one with several values, separated by "
            "commas, is varied; recipes that go together are joined by +. The same command goes "
            "on after an interruption."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="where the runs, sweep.html and figures.json are"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds 0 ... N-1 (default 1)"
    )
    parser.add_argument(
        "--slots", type=int, default=1, metavar="N", help="runs at once (default 1)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs and their time, and start none"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.seeds < 1 or options.slots < 1:
        raise ConfigError("--seeds and --slots must be at least 1")
    plan = build_plan(parse_overrides(rest), options.seeds)
    console = Console()
    if options.dry_run:
        print_plan(options.dir, plan, options.slots, console)
        return 0
    return sweep(options.dir, plan, options.slots, console)


def build_plan(overrides: Mapping[str, str], seeds: int) -> Plan:
    """Plan what the command line asks for.

    Raises ConfigError for a setting that does not exist, or that a sweep sets itself, or a
    combination that cannot be run.
    """
    varied = {}
    fixed = {}
    texts = {full_name(name): text for name, text in overrides.items()}
    environments = texts.get("env.name", EnvSection().name).split(",")
    for full, text in texts.items():
        if full in SET_FOR_EACH_RUN:
            raise ConfigError(f"sweep: {full} is set for each run; {SET_FOR_EACH_RUN[full]}")
        values = [value.strip() for value in text.split(",")]
        if len(values) == 1 or full in SENTENCES or _is_list(full, environments):
            fixed[full] = text
            continue
        if len(set(values)) < len(values):
            raise ConfigError(f"sweep: {full} has a value twice: {text}")
        varied[full] = values
    plan = Plan(varied, fixed, seeds)
    _check_cells(plan)
    return plan


def _is_list(full: str, environments: Sequence[str]) -> bool:
    """Tell whether a setting is a list, whose commas do not separate values of the sweep."""
    settings = dict(all_settings())
    for environment in environments:
        settings |= environment_fields(environment.strip())
        settings |= set_fields(set_names([full]), environment.strip())
    return full in settings and isinstance(kind_of(settings[full]), msgspec.inspect.ListType)


def _check_cells(plan: Plan) -> None:
    """Raise ConfigError for a run that cannot be made, of its settings or its environment."""
    environments = {}
    for cell in plan.cells():
        try:
            config = plan.config(cell)
        except ConfigError as error:
            raise ConfigError(f"sweep: {cell.name}: {error}") from None
        tasks = [config.env.name, config.environment_settings(), config.eval]
        environments[msgspec.json.encode(tasks)] = config
    for config in environments.values():
        check_sets(config, build_environment(config))


def print_plan(directory: Path, plan: Plan, slots: int, console: Console) -> None:
    """Print the runs that are to be made, and the most time that they take."""
    for cell in plan.cells():
        note = "  (finished)" * is_finished(directory / cell.name)
        console.print(f"{cell.name}{note}", highlight=False, markup=False, soft_wrap=True)
    console.print(describe_time(directory, plan, slots), highlight=False, soft_wrap=True)


def describe_time(directory: Path, plan: Plan, slots: int) -> str:
    """Say how many runs are to be made, and the most time that they take by run.max_minutes."""
    unfinished = [cell for cell in plan.cells() if not is_finished(directory / cell.name)]
    minutes = [plan.config(cell).run.max_minutes for cell in unfinished]
    longest_s = 60 * max(sum(minutes) / slots, max(minutes, default=0.0))
    words = f"{len(unfinished)} of {len(plan.cells())} runs to make, {slots} at once"
    if not all(minutes):
        return f"{words}: without a limit of time (run.max_minutes)"
    return f"{words}: {format_duration(longest_s)} at most (run.max_minutes)"


def sweep(directory: Path, plan: Plan, slots: int, console: Console) -> int:
    """Make the runs and show the table; returns the exit status.

    It is 0 if all are finished, 1 if one failed, 130 after Ctrl-C. Raises ConfigError for a
    directory with another sweep, or one whose runs another process makes.
    """
    cells = plan.cells()
    with _claim_directory(directory, plan):
        console.print(describe_time(directory, plan, slots), highlight=False, soft_wrap=True)
        failures, interrupted = asyncio.run(_make_runs(directory, plan, slots, console))
    for cell, log_lines in failures.items():
        console.print(
            f"{cell.name} failed\n{log_lines}", highlight=False, markup=False, soft_wrap=True
        )
    finished = [cell for cell in cells if is_finished(directory / cell.name)]
    if finished:
        _show_results(directory, finished, console)
        console.print(
            f"{len(finished)} of {len(cells)} runs; {directory / PAGE_FILE}",
            highlight=False,
            soft_wrap=True,
        )
    if interrupted:
        return 130
    return int(bool(failures))


def _show_results(directory: Path, finished: Sequence[Cell], console: Console) -> None:
    """Show the results of the runs in the terminal, as a page, and as figures."""
    runs = [
        (dict(cell.values), cell.seed, read_metrics(directory / cell.name / METRICS_FILE))
        for cell in finished
    ]
    without_seeds = [(values, records) for values, _, records in runs]
    rows = compare_runs(without_seeds)
    effects = compute_effects(runs)
    print_tables(rows, effects, console)
    atomic_write(directory / FIGURES_FILE, json.dumps(build_figures(rows, effects), indent=1))
    page = render_sweep(directory.resolve().name, rows, effects, without_seeds)
    atomic_write(directory / PAGE_FILE, page)


@contextlib.contextmanager
def _claim_directory(directory: Path, plan: Plan) -> Iterator[None]:
    """Keep a directory for this sweep, and for this process, while inside.

    A sweep may have more values or seeds than before, but what is not varied must hold for all
    runs.
    """
    file = directory / PLAN_FILE
    if file.exists():
        recorded = json.loads(file.read_text())
        if recorded["fixed"] != plan.fixed or list(recorded["varied"]) != list(plan.varied):
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
    record = {"varied": plan.varied, "fixed": plan.fixed, "seeds": plan.seeds}
    try:
        atomic_write(file, json.dumps(record, indent=1))
        yield
    finally:
        os.close(lock)


async def _make_runs(
    directory: Path, plan: Plan, slots: int, console: Console
) -> tuple[dict[Cell, str], bool]:
    """Start runs as there is room, until all have ended.

    Returns the failed ones, each with the end of its log, and whether the user interrupted.
    """
    cells = plan.cells()
    waiting = [cell for cell in cells if not is_finished(directory / cell.name)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with drop_unread_output(), Progress(*columns, console=console, transient=True) as progress:
        runs = _Runs(directory, plan, slots, progress)
        total = progress.add_task("runs", total=len(cells), completed=len(cells) - len(waiting))
        interrupt = _Interrupt(runs.children, console)
        try:
            with on_interrupt(interrupt):
                while runs.children or (waiting and not interrupt.received):
                    while waiting and len(runs.children) < slots and not interrupt.received:
                        runs.start(waiting.pop(0))
                    for cell in runs.collect_ended():
                        progress.advance(total)
                        if not is_finished(directory / cell.name) and not interrupt.received:
                            runs.failures[cell] = log_tail(_log_of(directory / cell.name))
                    await asyncio.sleep(TICK_S)
        finally:
            stop_all(list(runs.children.values()), patience_s=CHECKPOINT_PATIENCE_S)
    return runs.failures, interrupt.received


class _Runs:
    """The runs that are being made, each with a bar of its updates."""

    def __init__(self, directory: Path, plan: Plan, slots: int, progress: Progress) -> None:
        self.children: dict[Cell, ChildProcess] = {}
        self.failures: dict[Cell, str] = {}
        self._bars: dict[Cell, TaskID] = {}
        self._directory = directory
        self._plan = plan
        self._slots = slots
        self._progress = progress

    def start(self, cell: Cell) -> None:
        self.children[cell] = _start_run(
            self._directory / cell.name, self._plan.arguments(cell), alone=self._slots == 1
        )
        updates = self._plan.config(cell).run.max_updates
        self._bars[cell] = self._progress.add_task(cell.name, total=updates)

    def collect_ended(self) -> list[Cell]:
        """Move the bars on, and remove the runs that have ended; returns these."""
        for cell, bar in self._bars.items():
            self._progress.update(bar, completed=count_updates(self._directory / cell.name))
        ended = [cell for cell, child in self.children.items() if child.ended]
        for cell in ended:
            del self.children[cell]
            self._progress.remove_task(self._bars.pop(cell))
        return ended


class _Interrupt:
    """The handler of Ctrl-C.

    The first one lets the runs finish their updates and write checkpoints; a second one stops at
    once.
    """

    def __init__(self, children: Mapping[Cell, ChildProcess], console: Console) -> None:
        self.received = False
        self._children = children
        self._console = console

    def __call__(self) -> None:
        if not self.received:
            self._console.print(
                "Interrupted: the runs finish their updates and write checkpoints. Ctrl-C again "
                "stops at once. The same command goes on with them."
            )
        self.received = True
        for child in self._children.values():
            child.signal(signal.SIGINT)


def _start_run(run_dir: Path, arguments: Mapping[str, str], alone: bool) -> ChildProcess:
    """Begin the run, or resume it if it has begun.

    Runs that are not `alone` do not wait for their own threads by spinning, which keeps others from
    their cores: a warm start beside another one is then 2.5 times as fast
    (docs/measurements/performance.md).
    """
    environment = {}
    if not alone:
        environment = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if (run_dir / "config.toml").exists():
        command = ["run", "--resume", str(run_dir)]
    else:
        shutil.rmtree(run_dir, ignore_errors=True)
        options = [f"--{name}={value}" for name, value in arguments.items()]
        command = ["run", *options, f"--run.dir={run_dir}"]
    return spawn(run_dir.name, command, _log_of(run_dir), environment)


def _log_of(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.log")


def is_finished(run_dir: Path) -> bool:
    """Tell whether a run has ended by itself."""
    summary = run_dir / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["ended"] == "finished"


def count_updates(run_dir: Path) -> int:
    """Count the updates of a run, which may not have begun."""
    file = run_dir / METRICS_FILE
    if not file.exists():
        return 0
    return _count_updates_in(file, file.stat().st_size)


@lru_cache
def _count_updates_in(file: Path, size_bytes: int) -> int:
    """Count updates; the file is read again only when it has grown."""
    return len(select_kind(read_metrics(file), "update"))
