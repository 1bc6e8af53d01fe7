"""`python run.py [train]`: a run, new or resumed, to its end."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path

from rich.console import Console

from config import Config, ConfigError, Job
from config.options import this_command
from config.resolve import parse_overrides, resolve, to_toml
from protocol.files import WriteError
from supervisor.cli.commands import output_status
from supervisor.machine_checks import describe_machine
from supervisor.resume import check_model_of, resumed_config


def main(arguments: list[str]) -> int:
    """Train, or print the settings; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--resume", type=Path)
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest)
    config, changes = resolve_run(options.config, options.resume, overrides, options.serial)
    if options.dry_run:
        print(f"# {describe_machine(config)}\n{to_toml(config)}")
        return output_status()
    return _start_run(config, options.serial, options.resume is not None, changes)


def resolve_run(
    file: Path | None, run_dir: Path | None, overrides: dict[str, str], serial: bool
) -> tuple[Config, str]:
    """The configuration of a new run, or of one that is resumed; and what a resume changes.

    `run_dir` is that of the run to resume, which goes on with its own settings and the overrides.
    """
    if run_dir is None:
        return resolve(file, overrides, serial), ""
    if file is not None:
        raise ConfigError(
            "--resume takes the settings of the run it resumes; leave --config out (single "
            "settings may be changed)"
        )
    return resumed_config(run_dir, overrides)


def _start_run(config: Config, serial: bool, resume: bool, changes: str) -> int:
    from engine.launch import check_engine
    from supervisor.job import prepare_job
    from supervisor.models import find_model

    console = Console()
    if serial:
        _check_serial(config)
    model = find_model(config, console)
    if resume:
        check_model_of(Path(config.run.dir), model)
    if not serial:
        check_engine(config, model)
    job = prepare_job(config, resume, model)
    console.print(
        f"run directory: {job.run_dir}\ndashboard: {job.endpoints.dashboard}", highlight=False
    )
    if changes:
        console.print(f"settings changed: {changes}", highlight=False, markup=False, soft_wrap=True)
    return _run_to_end(job, serial, console)


def _check_serial(config: Config) -> None:
    """Raise ConfigError for settings that one process cannot have."""
    if config.learner.ranks > 1:
        raise ConfigError("learner.ranks: --serial is one process; leave it at 1 there")
    if config.engine.weights == "nccl":
        raise ConfigError(
            "engine.weights: --serial has an engine without a GPU; leave it at file there"
        )


def _run_to_end(job: Job, serial: bool, console: Console) -> int:
    """Run the job; returns the exit status.

    Whatever the end, the last line says where the run is and what to do next.
    """
    from engine.launch import EngineNotReady
    from supervisor.job import clean_up
    from supervisor.process import RunFailed

    if serial:
        from supervisor.serial import train_serially as train
    else:
        from supervisor.run import train

    run_dir = shlex.quote(job.run_dir)
    flags = "--serial " * serial
    how_to_resume = f"to go on: {this_command()} {flags}--resume {run_dir}"
    try:
        summary = asyncio.run(train(job, console))
    except (RunFailed, EngineNotReady, WriteError) as error:
        print(f"error: {error}\n{how_to_resume}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(how_to_resume, flush=True)
        return 130
    finally:
        clean_up(job)
    if summary["ended"] == "interrupted":
        print(how_to_resume, flush=True)
        return 130
    print(f"the run is in {run_dir}; as a page: {this_command()} report {run_dir}", flush=True)
    return 0
