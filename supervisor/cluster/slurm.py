"""A batch script for Slurm: a run on several machines, which goes on from its last checkpoint when
the job is started again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from supervisor.cluster.layout import Machines, keys_of, run_settings, weights_of

_BRIDGES = (
    r"/^(127|169\.254)\.|^(172\.(1[7-9]|2[0-9]|3[01])\.0|10\.88\.0|10\.0\.3|192\.168\.122)\.1$/"
)
_PICK = f"{{for (i = NF; i; i--) if ($i !~ /:/) {{any = $i; if ($i !~ {_BRIDGES}) best = $i}}}}"
_NONE = 'if (!any) {print node " has no IPv4 address" > "/dev/stderr"; exit 1}'
_ADDRESS = f"""address() {{ on "$1" hostname -I | awk -v node="$1" '{_PICK} END {{{_NONE}; print best ? best : any}}'; }}"""


def batch_script(
    directory: Path,
    root: Path,
    machines: Machines,
    time: str,
    sbatch: Sequence[str],
    overrides: dict[str, str],
) -> str:
    """`directory`: of the run; `root`: of the project; both are on a disk that all machines see, as
    is the Python that runs this. `time`: limit of the job; `sbatch`: its further options;
    `overrides`: settings of the run."""
    settings = run_settings(overrides, machines)
    train = " ".join(shlex.quote(f"--{name}={value}") for name, value in settings.items())
    # --disable-status: else srun answers the first SIGINT itself, with a status, and the learner does not hear of Ctrl-C.
    step = "srun,--disable-status,--overlap,--nodes=1,--ntasks=1"
    node = f"${{nodes[{machines.learner_node}]}}"
    away = f'--learner.launch="{step},--nodelist={node}" --learner.host="$(address "{node}")"'
    hosts = ",".join(
        f'$(address "${{nodes[{number}]}}")' for number in range(1, 1 + machines.shards)
    )
    shards = f'--controller.launch="{step},--relative={{shard}}" --controller.hosts="{hosts}"'
    options = [
        f"--nodes={machines.nodes}",
        "--ntasks-per-node=1",
        f"--time={time}",
        "--signal=B:INT@300",
        "--job-name=foray",
        *sbatch,
    ]
    lines = [
        "#!/bin/bash",
        *(
            f"#SBATCH {option}" for option in options
        ),  # INT, to this script alone, five minutes before the end
        "# Written by `run.py slurm`. sbatch again, and it goes on: a run that has begun is "
        "resumed.",
        "set -euo pipefail",
        "set -m  # else what runs beside this script does not hear of INT",
        f"cd {shlex.quote(str(root))}",
        f"run={shlex.quote(str(directory))} python={shlex.quote(sys.executable)}",
        f"keys={shlex.quote(str(keys_of(directory)))} "
        f"weights={shlex.quote(str(weights_of(directory)))}",
        "",
        'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
        'on() { local node=$1; shift; srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"; }',
        "# The first IPv4 address that is no bridge's of Docker, Podman, LXC or libvirt: others "
        "reach the machine there.",
        _ADDRESS,
        'head=$(address "${nodes[0]}")',
        "",
        '[[ -e "$keys/actors" ]] || "$python" run.py keys "$keys" actors',
        'if [[ -e "$run/config.toml" ]]; then start=(--resume "$run"); else start=(--run.dir "$run"); fi',
        "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT",
        "",
        f'for node in "${{nodes[@]:{machines.first_actors}}}"; do',
        f'    on "$node" "$python" run.py actor --connect "tcp://$head:{settings["controller.port"]}" --keys "$keys/actors" \\',
        f"        --actors {machines.actors} --wait 3600 &",
        "done",
        f'{step.replace(",", " ")} --nodelist="${{nodes[0]}}" "$python" run.py "${{start[@]}}" --security.keys="$keys" \\',
        '    --controller.host="$head" \\',
        '    --run.weights_dir="$weights" \\',
        *([f"    {shards} \\"] if machines.shards else []),
        *([f"    {away} \\"] if machines.learner else []),
        f"    {train} &",
        "training=$!",
        "# As Ctrl-C does: the run ends with a checkpoint, and sees to its other steps.",
        """trap 'interrupted=1; kill -INT "$training"' INT TERM HUP""",
        'wait "$training" && status=0 || status=$?',
        '[[ -z ${interrupted-} ]] || { wait "$training" && status=0 || status=$?; }',
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"
