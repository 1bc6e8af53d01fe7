"""The commands of the command line: what each is for, and where it is.

A command's module is imported only when it is asked for, so that help and errors come at once.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from config import ConfigError
from config.refusals import guess
from protocol.output import output_failure
from telemetry.work_clock import show_work

DEFAULT_COMMAND = "train"

JOINING = "let other machines join a running job"
SEVERAL_MACHINES = "train on several machines"


class Command(NamedTuple):
    """A command: the function that runs it with the arguments after its name, and its summary."""

    entry: str
    """MODULE:FUNCTION"""

    summary: str

    prints_answer: bool = True
    """The command is for what it prints: lost output fails it."""


COMMANDS = {
    "train": Command(
        "supervisor.cli.train:main", "train agents (the default command)", prints_answer=False
    ),
    "play": Command("supervisor.cli.play:main", "play one episode at the terminal, or watch one"),
    "check": Command(
        "supervisor.cli.check:main", "find out what is wrong with an environment of your own"
    ),
    "eval": Command("supervisor.cli.eval:main", "play held-out tasks with a model or checkpoint"),
    "export": Command(
        "supervisor.cli.export:main", "write a checkpoint as a Hugging Face directory"
    ),
    "report": Command("supervisor.cli.report:main", "show what runs did, as one HTML file"),
    "curve": Command("supervisor.cli.curve:main", "draw success over updates, as SVG"),
    "replay": Command("supervisor.cli.replay:main", "see where control acted in recorded episodes"),
    "retrain": Command(
        "supervisor.cli.retrain:main", "train again on the recorded episodes of a run"
    ),
    "trace": Command("supervisor.cli.trace:main", "see where the time of an update went"),
    "sweep": Command("supervisor.cli.sweep:main", "make and compare runs with other settings"),
    "retriever": Command("envs.search.server:main", "serve passages to the search environment"),
    "keys": Command("supervisor.cli.join:make_keys", JOINING),
    "actor": Command("supervisor.cli.join:run_actors", JOINING),
    "slurm": Command("supervisor.cli.cluster:write_slurm_script", SEVERAL_MACHINES),
    "ray": Command("supervisor.cli.cluster:train_on_ray", SEVERAL_MACHINES),
}


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command with the arguments after its name; returns its exit status.

    Raises ConfigError for a command that does not exist.
    """
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(
            f"there is no command {name!r}; there are: {', '.join(COMMANDS)}{guess(name, COMMANDS)}"
        )
    module, _, function = command.entry.partition(":")
    with show_work(f"loading what `{name}` needs"):
        main = getattr(importlib.import_module(module), function)
    status = main(arguments)
    if status == 0 and command.prints_answer:
        return output_status()
    return status


def output_status() -> int:
    """The exit status of printing an answer: 0, or 1 if some of it could not be written."""
    failure = output_failure()
    if failure is None:
        return 0
    print(f"error: the output cannot be written: {failure.strerror}", file=sys.stderr)
    return 1
