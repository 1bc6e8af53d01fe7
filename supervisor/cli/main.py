"""Training, the help, and what a user reads when something is wrong.

The other commands: supervisor/cli/commands.py.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from config import Config, ConfigError, Job
from config.defaults import other_defaults
from config.options import SHORT_NAMES, all_settings, default_of, description
from config.resolve import parse_overrides, to_toml
from config.resolve import resolve as resolve_settings
from protocol.files import WriteError
from protocol.output import output_failure
from supervisor.cli import commands
from supervisor.machine_checks import describe_machine
from supervisor.resume import check_model_of, resumed_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the command did its work, 1 when it failed, 2 for wrong arguments, 130
    after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if name not in COMMANDS:
            raise ConfigError(f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
        command, _ = COMMANDS[name]
        status = command(arguments)
        return status if name == "train" else status or _all_printed()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # argparse has printed help, or what is wrong with the arguments
        return end.code or _all_printed()


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py",
        usage="python run.py [train] [--actors N] [options] [--section.setting VALUE]",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--resume", type=Path)
    options, rest = parser.parse_known_args(arguments)
    if options.help:
        print_help(Console())
        return _all_printed()
    overrides = parse_overrides(rest)
    config, changes = resolve(options.config, options.resume, overrides, options.serial)
    if options.dry_run:
        print(f"# {describe_machine(config)}\n{to_toml(config)}")
        return _all_printed()
    return _run(config, serial=options.serial, resume=options.resume is not None, changes=changes)


def resolve(
    file: Path | None, resume: Path | None, overrides: dict[str, str], serial: bool
) -> tuple[Config, str]:
    """(The configuration of a new run, or of one that is resumed: its own, with overrides; what
    these change of it, in a line.)"""
    if resume is None:
        return resolve_settings(file, overrides, serial), ""
    if file is not None:
        raise ConfigError(
            "--resume takes the settings of the run it resumes; leave --config out (single "
            "settings may be changed)"
        )
    return resumed_config(resume, overrides)


def _all_printed() -> int:
    """The exit status of a command that prints what was asked for: 0, unless that could not be
    written."""
    failure = output_failure()
    if failure is None:
        return 0
    print(f"error: the output cannot be written: {failure.strerror}", file=sys.stderr)
    return 1


def _run(config: Config, serial: bool, resume: bool, changes: str) -> int:
    from engine.launch import check_engine
    from supervisor.job import prepare_job
    from supervisor.models import find_model

    console = Console()
    if serial and config.learner.ranks > 1:
        raise ConfigError("learner.ranks: --serial is one process; leave it at 1 there")
    if serial and config.engine.weights == "nccl":
        raise ConfigError(
            "engine.weights: --serial has an engine without a GPU; leave it at file there"
        )
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
    return _train_to_the_end(job, serial, console)


def _train_to_the_end(job: Job, serial: bool, console: Console) -> int:
    """The exit status of the run.

    Whatever its end, the last line says where it is and what to do next.
    """
    from engine.launch import EngineNotReady
    from supervisor.job import clean_up
    from supervisor.process import RunFailed

    if serial:
        from supervisor.serial import train_serially as train
    else:
        from supervisor.run import train

    run_dir = shlex.quote(job.run_dir)
    go_on = f"to go on: python run.py {'--serial ' if serial else ''}--resume {run_dir}"
    try:
        summary = asyncio.run(train(job, console))
    except (RunFailed, EngineNotReady, WriteError) as error:
        print(f"error: {error}\n{go_on}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(go_on, flush=True)
        return 130
    finally:
        clean_up(job)
    if summary["ended"] == "interrupted":
        print(go_on, flush=True)
        return 130
    print(f"the run is in {run_dir}; as a page: python run.py report {run_dir}", flush=True)
    return 0


COMMANDS = {"train": (_train, "train agents (the default command)")} | commands.COMMANDS


def print_help(console: Console) -> None:
    """Commands, the common options, then every setting with its default."""
    console.print("[bold]python run.py[/] \\[COMMAND] \\[OPTIONS] \\[--section.setting VALUE]\n")
    console.print("[bold]Commands[/]")
    _rows(console, [(name, says) for name, (_, says) in COMMANDS.items()])
    console.print("\n[bold]Options[/]")
    _rows(
        console,
        [
            ("--config FILE.toml", "read settings from a file"),
            ("--dry-run", "print the resolved settings and start nothing"),
            (
                "--serial",
                "everything in one process, against a small engine of our own: for a debugger",
            ),
            ("--resume DIR", "go on with the run in DIR, from its last checkpoint"),
        ],
    )
    fields = all_settings()
    console.print("\n[bold]Short names[/]")
    _rows(
        console,
        [
            (f"--{short.replace('_', '-')}", _sentence(full, fields[full]) + f" ({full})")
            for short, full in SHORT_NAMES.items()
        ],
    )
    section = ""
    for name, field in fields.items():
        if name.split(".")[0] != section:
            section = name.split(".")[0]
            console.print(f"\n[bold]Settings: {section}[/]")
        _rows(console, [(f"--{name}", _sentence(name, field))])


def _sentence(name: str, field: msgspec.inspect.Field) -> str:
    """What a setting does, and its default; those that depend on other settings, too."""
    default = default_of(field)
    if default in ("", []):
        return description(field)
    return f"{description(field)} [default {', '.join([str(default), *other_defaults(name)])}]"


def _rows(console: Console, rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        indent = " " * 32
        lines = console.render_lines(
            console.render_str(text, markup=False, highlight=False),
            console.options.update(width=max(40, console.width - 34)),
        )
        body = [("".join(segment.text for segment in line)).rstrip() for line in lines]
        console.print(
            f"  {name:<29} " + f"\n{indent}".join(body),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
