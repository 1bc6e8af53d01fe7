"""`python run.py [train]`: a run, new or resumed, to its end."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from config import Config, ConfigError, Job, RunSection
from config.options import this_command
from config.resolve import Resolution, find_changes, parse_overrides, resolve_new, to_toml
from protocol.files import WriteError
from supervisor.cli.commands import output_status
from supervisor.machine_checks import describe_machine, explain_weights_place
from supervisor.resume import check_model_of, resolve_resumed
from telemetry.sinks.starts_file import describe_start, read_starts, record_start
from telemetry.summary import SUMMARY_FILE
from telemetry.work_clock import show_work

FAILED = 1
INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Train, or print the settings; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--resume", type=Path)
    options, rest = parser.parse_known_args(arguments)
    from supervisor.models import pin_checkpoint

    overrides = pin_checkpoint(parse_overrides(rest))
    resolution, changes = resolve_run(options.config, options.resume, overrides, options.serial)
    config = resolution.config
    is_resumed = options.resume is not None
    if options.dry_run:
        print_settings(resolution)
        check_settings(config, options.serial)
        print(f"# {describe_warm_start(config)}")
        if not options.serial:
            print_plan(config)
        return output_status()
    job = prepare_run(config, options.serial, is_resumed)
    record_this_start(Path(job.run_dir), arguments, resolution.recipes, changes)
    console = Console()
    console.print(describe_recipes(resolution), highlight=False, markup=False, soft_wrap=True)
    if not is_resumed:
        words = describe_warm_start(config)
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    print_places(job, console)
    if changes:
        console.print(f"settings changed: {changes}", highlight=False, markup=False, soft_wrap=True)
    ending = run_to_end(job, options.serial, console)
    if ending.summary is not None:
        _print_summary(job, ending.summary, console)
    if ending.status == 0 and ending.summary is not None:
        _print_next_steps(job, options.serial, ending.summary)
    else:
        _print_how_to_resume(job, options.serial, ending)
    return ending.status


def record_this_start(
    run_dir: Path, arguments: Sequence[str], recipes: Sequence[str], changes: str
) -> None:
    """Record that a run was started, or resumed, by this command line on this machine.

    `changes` are the settings that a resume changes, in words.
    """
    from supervisor.cluster.planning import shown_gpus

    gpus = [gpu.describe() for gpu in shown_gpus()]
    record_start(run_dir, describe_start(arguments, recipes, changes, gpus))


def resolve_run(
    file: Path | None, run_dir: Path | None, overrides: dict[str, str], serial: bool
) -> tuple[Resolution, str]:
    """The settings of a new run, or of one that is resumed; and what a resume changes.

    `run_dir` is that of the run to resume, which goes on with its own settings and the overrides.
    Recipes that it has recorded hold, too.
    """
    if run_dir is None:
        return resolve_new(file, overrides, serial), ""
    if file is not None:
        raise ConfigError(
            "--resume takes the settings of the run it resumes; leave --config out (single "
            "settings may be changed)"
        )
    resolution, changes = resolve_resumed(run_dir, overrides)
    recipes = [name for start in read_starts(run_dir)[-1:] for name in start.recipes]
    return resolution._replace(recipes=[*dict.fromkeys([*recipes, *resolution.recipes])]), changes


def check_settings(config: Config, serial: bool) -> None:
    """Raise ConfigError for what is wrong with settings, as a run would; nothing is written."""
    from engine.launch import check_engine
    from supervisor.endpoints import choose_endpoints
    from supervisor.job import check_conversations, check_job, check_keys, check_model

    if serial:
        _check_serial(config)
    model = None
    if Path(config.model.name).is_dir():
        model = Path(config.model.name)
    if not serial:
        check_engine(config, model)
    environment = check_job(config)
    is_to_be_fetched = model is None and config.model.name != "tiny"
    if not is_to_be_fetched:
        check_model(config, environment, model)
    check_conversations(config, environment, model)
    check_keys(config, choose_endpoints(config))


def print_settings(resolution: Resolution) -> None:
    """Print settings as TOML, after what the machine has and which recipes hold.

    What differs from the sections' own defaults is listed, and marked, with where it is from.
    """
    config = resolution.config
    changes = find_changes(config)
    print(f"# {describe_machine(config)}")
    print(f"# {describe_recipes(resolution)}")
    print(f"# different from the plain defaults ({len(changes)}):")
    notes = {}
    for name, (default, value) in changes.items():
        source = resolution.sources[name]
        print(f"#   {name}: {default!r} -> {value!r} ({source})")
        notes[name] = f"default {default!r}; {source}"
    print(to_toml(config, notes))


def describe_recipes(resolution: Resolution) -> str:
    """Say which recipes a run has; a later one wins over an earlier one."""
    return f"recipes: {', '.join(resolution.recipes) or 'none'}"


def describe_warm_start(config: Config) -> str:
    """Say what the policy learns from before it is trained."""
    settings = config.warm_start
    sources = []
    if settings.episodes:
        sources.append(f"{settings.episodes:,} episodes of the expert, if it wins them")
    if settings.data:
        from learner.warm_start.conversation_file import count_conversations

        sources.append(f"the conversations of {settings.data} ({count_conversations(config):,})")
    return f"warm start: {', and '.join(sources) or 'none'}"


def print_plan(config: Config) -> None:
    """Print as comments what a run has on which GPU; nothing where it computes on CPUs."""
    from supervisor.cluster.planning import describe_plan

    for line in describe_plan(config):
        print(f"# {line}".rstrip())


def prepare_run(config: Config, serial: bool, resume: bool) -> Job:
    """Find the model, check everything, and make the run directory.

    Raises ConfigError when the job cannot be run as configured.
    """
    from engine.launch import check_engine
    from supervisor.cluster.planning import plan_run
    from supervisor.job import prepare_job
    from supervisor.models import find_model

    if serial:
        _check_serial(config)
    else:
        plan_run(config, None)  # before gigabytes are fetched for what cannot be
    model = find_model(config, Console())
    if resume:
        check_model_of(Path(config.run.dir), model)
    if serial:
        return prepare_job(config, resume, model)
    check_engine(config, model)
    plan = plan_run(config, model)
    devices = None
    if plan is not None:
        devices = plan.devices
    return prepare_job(config, resume, model, devices)


def _check_serial(config: Config) -> None:
    """Raise ConfigError for settings that one process cannot have."""
    if config.learner.ranks > 1:
        raise ConfigError("learner.ranks: --serial is one process; leave it at 1 there")
    if config.engine.weights == "nccl":
        raise ConfigError(
            "engine.weights: --serial has an engine without a GPU; leave it at file there"
        )
    elsewhere = {
        "engine.urls": config.engine.urls,
        "cluster.learner_launch": config.cluster.learner_launch,
        "cluster.shard_launch": config.cluster.shard_launch,
    }
    for name, value in elsewhere.items():
        if value:
            raise ConfigError(
                f"{name}: --serial is one process, with an engine of its own; leave it empty"
            )


def print_places(job: Job, console: Console) -> None:
    """Say where the run writes, where its dashboard is, and why weights are not in memory."""
    lines = [f"run directory: {job.run_dir}", f"dashboard: {job.endpoints.dashboard}"]
    note = explain_weights_place(job.config.run.weights_dir, Path(job.weights_dir))
    if note:
        lines.append(note)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


class Ending(NamedTuple):
    """How a run has ended."""

    status: int
    """Exit status."""
    summary: dict[str, Any] | None = None
    option: str = ""
    """What to resume the run with, where its failure says so."""


def run_to_end(job: Job, serial: bool, console: Console) -> Ending:
    """Run the job. If it fails, the error is printed."""
    from engine.launch import EngineNotReady
    from supervisor.job import clean_up
    from supervisor.process import RunFailed

    with show_work("loading what a run needs"):
        if serial:
            from supervisor.serial import train_serially as train
        else:
            from supervisor.run import train

    try:
        summary = asyncio.run(train(job, console))
    except (RunFailed, EngineNotReady, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return Ending(FAILED, option=getattr(error, "option", ""))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return Ending(INTERRUPTED)
    finally:
        clean_up(job)
    if summary["ended"] == "interrupted":
        return Ending(INTERRUPTED, summary)
    return Ending(0, summary)


def _print_summary(job: Job, summary: dict[str, Any], console: Console) -> None:
    from telemetry.summary import format_summary

    heading, *rows = format_summary(summary, job.config.run).split("\n", 1)
    console.print(heading, style="bold", highlight=False, markup=False, soft_wrap=True)
    for text in rows:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_how_to_resume(job: Job, serial: bool, ending: Ending) -> None:
    """Say how to go on with a run that did not finish; after an error, beside that."""
    stream = sys.stdout
    if ending.status == FAILED:
        stream = sys.stderr
    resume = f"{this_command()} {_name_flags(serial)}--resume {shlex.quote(job.run_dir)}"
    more = options_to_resume(job.config.run, Path(job.run_dir), ending)
    print(" ".join(["to go on:", resume, *more]), file=stream, flush=True)


def options_to_resume(settings: RunSection, run_dir: Path, ending: Ending) -> list[str]:
    """The options that a run which did not finish needs to get further, limits included."""
    summary = ending.summary
    file = run_dir / SUMMARY_FILE
    if summary is None and file.is_file():
        summary = json.loads(file.read_text())
    options = [ending.option]
    if summary is not None:
        options.append(double_reached_limits(settings, summary))
    return [option for option in options if option]


def _print_next_steps(job: Job, serial: bool, summary: dict[str, Any]) -> None:
    """Say where the run and its last checkpoint are, and what to do with them."""
    from learner.checkpoint_damage import newest_undamaged

    run_dir = shlex.quote(job.run_dir)
    this = this_command()
    more = double_reached_limits(job.config.run, summary)
    checkpoint = newest_undamaged(Path(job.run_dir))
    steps = {"look at it": f"{this} report {run_dir}"}
    if checkpoint is not None:
        steps |= {
            "play": f"{this} play --watch {run_dir}",
            "evaluate": f"{this} eval {run_dir}",
            "export": f"{this} export {run_dir} DIR",
            "go on": f"{this} {_name_flags(serial)}--resume {run_dir} {more}",
            "checkpoint": shlex.quote(str(checkpoint)),
        }
    print(f"the run is in {run_dir}")
    for name, step in steps.items():
        print(f"  {name + ':':<12}{step}", flush=True)


def double_reached_limits(settings: RunSection, summary: dict[str, Any]) -> str:
    """The options by which a run that has ended goes on as long again.

    They double each limit that it has reached; `summary` is that of the run. Minutes are added to
    those that it took, which may be more than its limit, a warm start's included.
    """
    options = []
    if summary["updates"] >= settings.max_updates:
        options.append(f"--updates {2 * max(1, settings.max_updates)}")
    if settings.max_tokens and summary["training_tokens"] >= settings.max_tokens:
        options.append(f"--tokens {2 * settings.max_tokens}")
    if summary["wall_seconds"] >= settings.max_seconds():
        minutes_so_far = ceil(summary["wall_seconds"] / 60)
        options.append(f"--minutes {minutes_so_far + settings.max_minutes:g}")
    return " ".join(options)


def _name_flags(serial: bool) -> str:
    return "--serial " * serial
