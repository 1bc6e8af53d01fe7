"""A batch script for Slurm: a run on several machines, which goes on from its last checkpoint when the job is started again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import ConfigError

PORT = 5555
"""Of the controller, unless controller.port is given."""
OURS = ("run.dir", "run.weights_dir", "security.keys", "controller.host", "learner.launch", "learner.host")
"""Settings that the script gives, since it alone knows the machines."""


@dataclass(frozen=True)
class Machines:
    """What is where: the first machine has controller and engines, the second one the learner (if `learner`), the others have actors."""

    actor_nodes: int
    actors: int
    """On each machine with actors."""
    learner: bool
    time: str
    sbatch: Sequence[str]
    """Further options of sbatch."""

    @property
    def nodes(self) -> int:
        return 1 + self.learner + self.actor_nodes


def batch_script(directory: Path, root: Path, machines: Machines, overrides: dict[str, str]) -> str:
    """`directory`: of the run; `root`: of the project; both are on a disk that all machines see, as is the Python that runs this.
    `overrides`: settings of the run. Raises ConfigError for those in OURS."""
    given = next((name for name in overrides if name in OURS), None)
    if given is not None:
        raise ConfigError(f"{given}: the script gives it, from the machines that Slurm assigns; leave it out")
    settings = {"controller.port": str(PORT), "actor.count": "0"} | overrides
    train = " ".join(shlex.quote(f"--{name}={value}") for name, value in settings.items())
    away = '--learner.launch="srun,--overlap,--nodes=1,--ntasks=1,--nodelist=${nodes[1]}" --learner.host="$(address "${nodes[1]}")"'
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(machines)),
        "# Written by `run.py slurm`. sbatch again, and it goes on: a run that has a checkpoint is resumed.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(root))}",
        f"run={shlex.quote(str(directory))} python={shlex.quote(sys.executable)}",
        "",
        'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
        'on() { local node=$1; shift; srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"; }',
        "address() { on \"$1\" hostname -I | cut -d' ' -f1; }",
        'head=$(address "${nodes[0]}")',
        "",
        '[[ -e "$run-keys/actors" ]] || "$python" run.py keys "$run-keys" actors',
        'if compgen -G "$run/checkpoints/*" > /dev/null; then start=(--resume "$run"); else start=(--run.dir "$run"); fi',
        "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT",
        "",
        f'for node in "${{nodes[@]:{1 + machines.learner}}}"; do',
        f'    on "$node" "$python" run.py actor --connect "tcp://$head:{settings["controller.port"]}" --keys "$run-keys/actors" \\',
        f"        --actors {machines.actors} --wait 3600 &",
        "done",
        'on "${nodes[0]}" "$python" run.py "${start[@]}" --security.keys="$run-keys" --controller.host="$head" \\',
        '    --run.weights_dir="$run-weights" \\',
        *([f"    {away} \\"] if machines.learner else []),
        f"    {train}",
    ]
    return "\n".join(lines) + "\n"


def _options(machines: Machines) -> list[str]:
    """INT, five minutes before the end: the run ends with a checkpoint."""
    own = [f"--nodes={machines.nodes}", "--ntasks-per-node=1", f"--time={machines.time}", "--signal=INT@300", "--job-name=foray"]
    return [*own, *machines.sbatch]
