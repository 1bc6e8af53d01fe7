"""Run a command of the command line, and say in a sentence what is wrong."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import cast

from rich.console import Console

from config import ConfigError
from protocol.files import WriteError
from supervisor.cli.commands import COMMANDS, DEFAULT_COMMAND, output_status, run_command
from supervisor.cli.help import is_section, print_help

HELP_OPTIONS = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Returns the exit status: 0 when the command did its work, 1 when it failed, 2 for wrong
    arguments, 130 after Ctrl-C.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _run(list(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # argparse has printed help, or what is wrong with the arguments
        return cast(int, end.code or output_status())


def _run(arguments: list[str]) -> int:
    """Print help or the version, if the arguments ask for that, or run a command."""
    name, rest = _split_command(arguments)
    if name == "help":
        return _help(rest)
    if name == DEFAULT_COMMAND:
        for position, argument in enumerate(rest):
            if argument in HELP_OPTIONS:
                return _help(rest[position + 1 :])
        if "--version" in rest:
            print(f"foray {metadata.version('foray')}")
            return output_status()
    return run_command(name, rest)


def _help(topics: list[str]) -> int:
    """Print the help on a command, a section of settings, what has the name of both, or all."""
    topic = next(iter(topics), "")
    if topic in COMMANDS and topic != DEFAULT_COMMAND:
        with contextlib.suppress(SystemExit):  # argparse ends so once it has printed its help
            run_command(topic, ["--help"])
        if not is_section(topic):
            return output_status()
        print(flush=True)
    if topic == DEFAULT_COMMAND:
        topic = ""
    print_help(topic, Console())
    return output_status()


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name, and the arguments after it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return DEFAULT_COMMAND, arguments
