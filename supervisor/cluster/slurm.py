"""Write a batch script for Slurm: a run on several machines.

The run goes on from its last checkpoint when the job is started again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from supervisor.cluster.layout import Machines, keys_of, run_settings, weights_of

# --disable-status: else srun answers the first SIGINT itself, with a status, and the learner does
# not hear of Ctrl-C.
_STEP = ("srun", "--disable-status", "--overlap", "--nodes=1", "--ntasks=1")

_BRIDGES = (
    r"/^(127|169\.254)\.|^(172\.(1[7-9]|2[0-9]|3[01])\.0|10\.88\.0|10\.0\.3|192\.168\.122)\.1$/"
)

_FUNCTIONS = r"""
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
on() {
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"
}
# The first IPv4 address that is no bridge's of Docker, Podman, LXC or libvirt: others reach the
# machine there.
address() {
    on "$1" hostname -I | awk -v node="$1" '
        {
            for (i = NF; i; i--) if ($i !~ /:/) {
                any = $i
                if ($i !~ BRIDGES) best = $i
            }
        }
        END {
            if (!any) {print node " has no IPv4 address" > "/dev/stderr"; exit 1}
            print best ? best : any
        }'
}
head=$(address "${nodes[0]}")
""".replace("BRIDGES", _BRIDGES)

_BEGINNING = r"""
[[ -e "$keys/actors" ]] || "$python" run.py keys "$keys" actors
if [[ -e "$run/config.toml" ]]; then
    start=(--resume "$run")
else
    start=(--run.dir "$run")
fi
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
"""

_END = r"""
training=$!
# As Ctrl-C does: the run ends with a checkpoint, and sees to its other steps.
trap 'interrupted=1; kill -INT "$training"' INT TERM HUP
wait "$training" && status=0 || status=$?
[[ -z ${interrupted-} ]] || { wait "$training" && status=0 || status=$?; }
exit "$status"
"""


def batch_script(
    directory: Path,
    root: Path,
    machines: Machines,
    time_limit: str,
    sbatch_options: Sequence[str],
    overrides: dict[str, str],
) -> str:
    """The script of a run in `directory` on the machines, by the project in `root`.

    Both are on a disk that all machines see, as is the Python that runs this. `overrides` are
    settings of the run.
    """
    settings = run_settings(overrides, machines)
    return "".join(
        [
            _header(directory, root, machines, time_limit, sbatch_options),
            _FUNCTIONS,
            _BEGINNING,
            _actor_loop(machines, settings["controller.port"]),
            _training(machines, settings),
            _END,
        ]
    )


def _header(
    directory: Path,
    root: Path,
    machines: Machines,
    time_limit: str,
    sbatch_options: Sequence[str],
) -> str:
    options = [
        f"--nodes={machines.nodes}",
        "--ntasks-per-node=1",
        f"--time={time_limit}",
        "--signal=B:INT@300",  # to this script alone, five minutes before the end
        "--job-name=foray",
        *sbatch_options,
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "# Written by `run.py slurm`. sbatch again, and it goes on: a run that has begun is "
        "resumed.",
        "set -euo pipefail",
        "set -m  # else what runs beside this script does not hear of INT",
        f"cd {shlex.quote(str(root))}",
        f"run={shlex.quote(str(directory))}",
        f"python={shlex.quote(sys.executable)}",
        f"keys={shlex.quote(str(keys_of(directory)))}",
        f"weights={shlex.quote(str(weights_of(directory)))}",
        "",
    ]
    return "\n".join(lines)


def _actor_loop(machines: Machines, port: str) -> str:
    """Start actors on their machines."""
    return f"""
for node in "${{nodes[@]:{machines.first_actors}}}"; do
    on "$node" "$python" run.py actor --connect "tcp://$head:{port}" --keys "$keys/actors" \\
        --actors {machines.actors} --wait 3600 &
done
"""


def _training(machines: Machines, settings: dict[str, str]) -> str:
    """Start the run on the first machine."""
    words = [
        *_STEP,
        '--nodelist="${nodes[0]}" "$python" run.py "${start[@]}"',
        '--security.keys="$keys"',
        '--controller.host="$head"',
        '--run.weights_dir="$weights"',
        *_placement(machines),
        *(shlex.quote(f"--{name}={value}") for name, value in settings.items()),
    ]
    return " ".join(words) + " &"


def _placement(machines: Machines) -> list[str]:
    """Options that say where shards and learner are, and how they are started there."""
    step = ",".join(_STEP)
    options = []
    if machines.shards:
        hosts = ",".join(_address_of(number) for number in range(1, 1 + machines.shards))
        options.append(f'--cluster.shard_launch="{step},--relative={{shard}}"')
        options.append(f'--cluster.shard_hosts="{hosts}"')
    if machines.learner:
        options.append(f'--cluster.learner_launch="{step},--relative={{machine}}"')
        options.append(f"--cluster.learner_machines={machines.learner}")
        options.append(f'--learner.host="{_address_of(machines.learner_node)}"')
    return options


def _address_of(number: int) -> str:
    """The shell's expression for the address of a machine."""
    return f'$(address "${{nodes[{number}]}}")'
