"""`python run.py slurm` and `python run.py ray`: a run on several machines."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

from config import Config, ConfigError
from config.options import this_command
from config.recipes import RECIPE_OPTION, with_absolute_paths
from config.resolve import full_name, parse_overrides, resolve
from protocol.files import atomic_write
from supervisor.cluster.layout import Machines, run_settings


def write_slurm_script(arguments: list[str]) -> int:
    """Write a batch script that runs on the machines which Slurm assigns."""
    parser = _build_parser(
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
    options, overrides, config = _parse(parser, arguments)
    machines = _machines(options, config)
    check_plan(overrides, machines)
    from supervisor.cluster.slurm import batch_script
    from supervisor.process import ROOT

    script = options.dir.with_name(f"{options.dir.name}.sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    text = batch_script(options.dir, ROOT, machines, options.time, options.sbatch, overrides)
    atomic_write(script, text)
    print(f"wrote {script}; start it: sbatch {shlex.quote(str(script))}")
    return 0


def train_on_ray(arguments: list[str]) -> int:
    """Train on the machines of a Ray cluster that is there already."""
    parser = _build_parser(
        "ray",
        "Run on the Ray cluster that RAY_ADDRESS names, or that this machine belongs to.",
        "[--gpus N] [--learner-gpus N] [--wait S]",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs of each machine with engines (default: cluster.gpus)",
    )
    parser.add_argument(
        "--learner-gpus",
        type=int,
        metavar="N",
        help="GPUs of each of the learner's machines (default: cluster.learner_gpus)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds until Ray has the machines (default 60)",
    )
    options, overrides, config = _parse(parser, arguments)
    machines = _machines(options, config)
    overrides |= _gpu_settings(options, machines)
    check_plan(overrides, machines)
    planned = resolve(None, overrides).cluster
    try:
        from supervisor.cluster.ray import run_on_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"run.py ray: {error}; pip install -e '.[ray]'") from None
    return run_on_ray(
        options.dir,
        machines,
        planned.gpus,
        planned.learner_gpus or planned.gpus,
        options.wait,
        overrides,
    )


def _build_parser(command: str, description: str, further: str) -> argparse.ArgumentParser:
    """The parser of a command that puts a run on several machines; `further` is its own usage."""
    parser = argparse.ArgumentParser(
        prog=f"run.py {command}",
        usage=(
            f"{this_command()} {command} DIR [--actor-nodes N] [--actors N] [--shard-nodes N] "
            f"[--learner-nodes N] {further} [--SETTING VALUE ...]"
        ),
        description=(
            f"{description} A run in DIR, with controller and engines on the first machine. Any "
            "setting of a run may follow. DIR, this project and its Python are on a disk that all "
            "machines see. A run that has begun goes on."
        ),
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
        "--learner-nodes",
        type=int,
        default=0,
        metavar="N",
        help="machines of their own for the learner, which share its ranks (default 0)",
    )
    return parser


def check_plan(overrides: Mapping[str, str], machines: Machines) -> None:
    """Raise ConfigError where GPUs that the settings speak of do not hold the run.

    Machines that the settings say nothing of are looked at when the run starts there.
    """
    from supervisor.cluster.planning import describe_plan

    others = [f"shard-{number}" for number in range(machines.shards)]
    placed = {"cluster.shard_hosts": ",".join(others), "run.weights_dir": "elsewhere"}
    if machines.learner:
        placed["cluster.learner_launch"] = "elsewhere,{machine}"
        placed["cluster.learner_machines"] = str(machines.learner)
    config = resolve(None, run_settings(dict(overrides), machines) | placed)
    if config.cluster.gpus and config.cluster.gpu_memory_gb:
        describe_plan(config)


def _gpu_settings(options: argparse.Namespace, machines: Machines) -> dict[str, str]:
    """Settings that say how many GPUs the machines have, as far as options do."""
    settings = {}
    if options.gpus is not None:
        settings["cluster.gpus"] = str(options.gpus)
    if options.learner_gpus is not None and machines.learner:
        settings["cluster.learner_gpus"] = str(options.learner_gpus)
    return settings


def _parse(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, str], Config]:
    """The command's options, settings of the run by their full names, and all its settings.

    Raises ConfigError for what is wrong with the settings, before the run begins.
    """
    options, rest = parser.parse_known_args(arguments)
    if options.actor_nodes < 1 or options.actors < 1:
        raise ConfigError("--actor-nodes and --actors must be at least 1")
    options.dir = options.dir.absolute()
    overrides = {full_name(name): value for name, value in parse_overrides(rest).items()}
    if RECIPE_OPTION in overrides:
        overrides[RECIPE_OPTION] = with_absolute_paths(overrides[RECIPE_OPTION])
    return options, overrides, resolve(None, overrides)


def _machines(options: argparse.Namespace, config: Config) -> Machines:
    """The machines that the options ask for; cluster.learner_gpus asks for one of the learner."""
    learner = options.learner_nodes
    if config.cluster.learner_gpus:
        learner = max(1, learner)
    return Machines(options.shard_nodes, options.actor_nodes, options.actors, learner)
