"""The commands beside training: their arguments, and what does the work, which is imported when it
is asked for."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from config import ConfigError
from config.resolve import full_name, parse_overrides, resolve
from protocol.files import atomic_write
from supervisor.cluster.layout import Machines


def play(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py play",
        description=(
            "One episode at the terminal. Any setting of a run may follow (--env NAME, "
            "--section.setting VALUE)."
        ),
    )
    parser.add_argument(
        "--task", type=int, default=0, metavar="N", help="number of the task (default 0)"
    )
    parser.add_argument(
        "--split",
        choices=("train", "held_out"),
        default="held_out",
        help="where the task is from (default held_out)",
    )
    parser.add_argument(
        "--watch",
        default="",
        metavar="WHO",
        help="expert, or the directory of a checkpoint; without it you play",
    )
    options, rest = parser.parse_known_args(arguments)
    from supervisor.cli.play import play as play_one

    play_one(
        resolve(None, parse_overrides(rest)),
        options.split,
        options.task,
        options.watch,
        Console(),
    )
    return 0


def replay(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py replay",
        description="Recorded episodes through the rules of control again: where they acted and why, and where they would with other "
        "settings, which may follow (--control.epsilon 0.01). Without EPISODE: the episodes of the run.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "episode",
        nargs="?",
        default="",
        metavar="EPISODE",
        help="its name in that list, such as t3.1",
    )
    parser.add_argument("--turn", type=int, metavar="N", help="one turn (from 0), token by token")
    parser.add_argument(
        "--train",
        action="store_true",
        help="train on the recorded episodes of RUN instead: --train RUN",
    )
    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    named = (
        parse_overrides(arguments[len(names) :])
        if not {"-h", "--help"} & set(arguments)
        else {"help": ""}
    )
    if not names and "train" in named:
        from supervisor.cli.retrain import retrain

        retrain(Path(named.pop("train")), named, Console())
        return 0
    turn = [f"--turn={named.pop('turn')}"] if "turn" in named else []
    options = parser.parse_args(["--help"] if "help" in named else [*names, *turn])
    from supervisor.cli.replay import replay_run

    replay_run(options.run, options.episode, options.turn, named, Console())
    return 0


def sweep(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py sweep",
        usage="python run.py sweep DIR --SETTING VALUE,VALUE,... [--SETTING VALUE ...] [--seeds N] [--slots N]",
        description="A run for each combination of settings and each seed, in DIR, and a table of their measures. Any setting of a run may "
        "follow; one with several values, separated by commas, is varied. The same command goes on after an interruption.",
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
    options, rest = parser.parse_known_args(arguments)
    if options.seeds < 1 or options.slots < 1:
        raise ConfigError("--seeds and --slots must be at least 1")
    from supervisor.cli.sweep import plan
    from supervisor.cli.sweep import sweep as make_runs

    return make_runs(
        options.dir, plan(parse_overrides(rest), options.seeds), options.slots, Console()
    )


def report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py report", description="What runs did, as one HTML file that needs no network."
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories, finished or not"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the first of them"
    )
    parser.add_argument(
        "--episodes",
        default="",
        metavar="NAMES",
        help="episodes to show, such as t3.1,t4.0 (default: a few)",
    )
    options = parser.parse_args(arguments)
    from supervisor.cli.report import write_report

    console = Console()
    names = [name.strip() for name in options.episodes.split(",") if name.strip()]
    console.print(
        f"wrote {write_report(options.runs, options.output, names, console)}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def trace(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py trace",
        description="Where the time of an update went, in all processes; the file is for ui.perfetto.dev.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--update", type=int, metavar="N", help="default: the last one that was finished"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/trace-N.json")
    options = parser.parse_args(arguments)
    from supervisor.cli.trace import write_trace

    console = Console()
    console.print(
        f"wrote {write_trace(options.run, options.update, options.output, console)}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def retriever(arguments: list[str]) -> int:
    from envs.search.server import main as serve

    return serve(arguments)


def keys(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py keys",
        description="Keys for a run that other machines may join: run.py --security.keys DIR --controller.host 0.0.0.0. Each machine gets "
        "a directory DIR/NAME, to be copied to it for run.py actor --keys; DIR/allowed has the public keys of those that may join.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="where the keys are, or will be")
    parser.add_argument(
        "names",
        nargs="*",
        default=["actor"],
        metavar="NAME",
        help="machines to make keys for (default: actor)",
    )
    options = parser.parse_args(arguments)
    from protocol.security import KeysError, make_keys

    try:
        for name in options.names:
            for made in make_keys(options.dir, name):
                print(f"made {made}")
    except KeysError as error:
        raise ConfigError(str(error)) from None
    return 0


def slurm(arguments: list[str]) -> int:
    parser = _elsewhere(
        "slurm", "Write DIR.sbatch, a batch script for Slurm.", "[--time T] [--sbatch OPTION]"
    )
    parser.add_argument(
        "--time",
        default="12:00:00",
        metavar="T",
        help="limit of the job (default 12:00:00); it ends in good order before",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="such as --sbatch=--partition=gpu; more than one",
    )
    options, machines, overrides = _placed(parser, arguments)
    from supervisor.cluster.slurm import batch_script
    from supervisor.process import ROOT

    script = options.dir.with_name(f"{options.dir.name}.sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(
        script, batch_script(options.dir, ROOT, machines, options.time, options.sbatch, overrides)
    )
    print(f"wrote {script}; start it: sbatch {shlex.quote(str(script))}")
    return 0


def ray(arguments: list[str]) -> int:
    parser = _elsewhere(
        "ray",
        "Run on the Ray cluster that RAY_ADDRESS names, or that this machine belongs to.",
        "[--gpus N] [--learner-gpus N] [--wait S]",
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="of the first machine (default 0)"
    )
    parser.add_argument(
        "--learner-gpus",
        type=int,
        default=0,
        metavar="N",
        help="of the learner's machine (default 0)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds until Ray has the machines (default 60)",
    )
    options, machines, overrides = _placed(parser, arguments)
    try:
        from supervisor.cluster.ray import run_on_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"run.py ray: {error}; pip install -e '.[ray]'") from None
    return run_on_ray(
        options.dir, machines, options.gpus, options.learner_gpus, options.wait, overrides
    )


def actor(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py actor", description="Play episodes for a job that runs elsewhere."
    )
    parser.add_argument(
        "--connect",
        required=True,
        metavar="tcp://HOST:PORT",
        help="where the job's controller listens (controller.port)",
    )
    parser.add_argument(
        "--actors",
        type=int,
        default=1,
        metavar="N",
        help="actor processes to start here (default 1)",
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=1,
        metavar="N",
        help="episodes each plays at once (default 1)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to wait for the controller (default 30)",
    )
    parser.add_argument(
        "--keys",
        default="",
        metavar="DIR",
        help="this machine's keys, which run.py keys made where the job runs",
    )
    options = parser.parse_args(arguments)
    if options.actors < 1 or options.episodes < 1:
        raise ConfigError("--actors and --episodes must be at least 1")
    from actors.fleet import FleetError, run_fleet
    from protocol.security import KeysError, is_loopback, load_keys
    from supervisor.endpoints import check_ipv4

    if not _is_address(options.connect):
        raise ConfigError(f"--connect: {options.connect} is no address; write tcp://HOST:PORT")
    check_ipv4("--connect", urlsplit(options.connect).hostname)
    if not options.keys and not is_loopback(options.connect):
        raise ConfigError(
            "--keys: another machine's job admits those alone who have a key; run.py keys makes them where the job runs"
        )
    try:
        run_fleet(
            options.connect, options.actors, options.episodes, options.wait, load_keys(options.keys)
        )
    except KeysError as error:
        raise ConfigError(f"--keys: {error}") from None
    except FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _is_address(text: str) -> bool:
    """Whether it is tcp://HOST:PORT."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme == "tcp"
            and bool(parts.hostname)
            and parts.port is not None
            and not parts.path
        )
    except ValueError:  # a port that is no number
        return False


def _elsewhere(command: str, description: str, further: str) -> argparse.ArgumentParser:
    """Arguments of commands that put a run on several machines."""
    parser = argparse.ArgumentParser(
        prog=f"run.py {command}",
        usage=f"python run.py {command} DIR [--actor-nodes N] [--actors N] [--shard-nodes N] [--learner-node] {further} "
        "[--SETTING VALUE ...]",
        description=f"{description} A run in DIR, with controller and engines on the first machine. Any setting of a run may follow. DIR, "
        "this project and its Python are on a disk that all machines see. A run that has begun goes on.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dir",
        type=Path,
        metavar="DIR",
        help="the run's directory; beside it, keys and weights get one of their own",
    )
    parser.add_argument(
        "--actor-nodes", type=int, default=1, metavar="N", help="machines that play (default 1)"
    )
    parser.add_argument(
        "--actors",
        type=int,
        default=64,
        metavar="N",
        help="actor processes on each of them (default 64)",
    )
    parser.add_argument(
        "--shard-nodes",
        type=int,
        default=0,
        metavar="N",
        help="machines with engines beside the first; engine.count is of all (default 0)",
    )
    parser.add_argument(
        "--learner-node", action="store_true", help="a machine of its own for the learner"
    )
    return parser


def _placed(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, Machines, dict[str, str]]:
    """(Options, machines, settings of the run by their full names, which are checked)."""
    options, rest = parser.parse_known_args(arguments)
    if options.actor_nodes < 1 or options.actors < 1:
        raise ConfigError("--actor-nodes and --actors must be at least 1")
    options.dir = options.dir.absolute()
    overrides = {full_name(name): value for name, value in parse_overrides(rest).items()}
    resolve(None, overrides)  # what is wrong with them is said now, and not when the run begins
    return (
        options,
        Machines(options.shard_nodes, options.actor_nodes, options.actors, options.learner_node),
        overrides,
    )


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "play": (
        play,
        "play one episode at the terminal, or watch: run.py play [--task N] [--split train|held_out] [--watch expert|CHECKPOINT]",
    ),
    "replay": (
        replay,
        "where control acted in recorded episodes and why, and where other settings would: run.py replay RUN [EPISODE] [--turn N]; "
        "or train again on them, with other settings of the learner: "
        "run.py replay --train RUN [--learner.loss NAME]",
    ),
    "sweep": (
        sweep,
        "a run for each combination of settings, and a table: run.py sweep DIR --max-staleness 0,1,4 --control off,t2po [--seeds N]",
    ),
    "report": (
        report,
        "what runs did, as one HTML file: run.py report RUN [RUN ...] [--output FILE] [--episodes t3.1,t4.0]",
    ),
    "trace": (
        trace,
        "where the time of an update went, and a file of it for Perfetto: run.py trace RUN [--update N] [--output FILE]",
    ),
    "retriever": (
        retriever,
        "serve passages to search in, by Search-R1's protocol: run.py retriever [--port 8000] [--corpus FILE]",
    ),
    "keys": (keys, "make keys for the machines that may join a run: run.py keys DIR [NAME ...]"),
    "slurm": (
        slurm,
        "write a batch script for Slurm: run.py slurm DIR [--actor-nodes N] [--shard-nodes N] [--learner-node]",
    ),
    "ray": (
        ray,
        "run on a Ray cluster: run.py ray DIR [--actor-nodes N] [--shard-nodes N] [--learner-node] [--gpus N]",
    ),
    "actor": (
        actor,
        "join a running job from another machine: run.py actor --connect tcp://HOST:PORT --actors N",
    ),
}
"""Name -> (what does it with the arguments after it, what it does); `train`, which needs no name,
is in cli.py."""
