"""Run a module of this project on some of the GPUs that its machine shows.

`python -m supervisor.on_devices 4,5 learner JOB` runs `python -m learner JOB` on the fifth and the
sixth of them. It starts on the machine where the module is to run: what a launcher shows there
(Slurm and Ray set CUDA_VISIBLE_DEVICES themselves) is not known before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from supervisor.process import ERROR_PREFIX, python_module

VISIBLE = "CUDA_VISIBLE_DEVICES"

ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA counts as NVIDIA's tools do; by itself, it begins with the fastest."""


def on_devices(gpus: Sequence[int], arguments: Sequence[str]) -> list[str]:
    """The arguments of `python -m` that run a module on GPUs; as they are, without any."""
    if not gpus:
        return list(arguments)
    return ["supervisor.on_devices", ",".join(map(str, gpus)), *arguments]


def choose_visible(gpus: Sequence[int], shown: str | None) -> str:
    """The CUDA_VISIBLE_DEVICES that leaves these of what is shown; None: all are.

    Raises ValueError where fewer are shown.
    """
    if shown is None:
        return ",".join(map(str, gpus))
    names = [name.strip() for name in shown.split(",") if name.strip()]
    missing = [gpu for gpu in gpus if gpu >= len(names)]
    if missing:
        raise ValueError(
            f"GPU {missing[0]} was chosen, and this machine shows {len(names)} "
            f"({VISIBLE}={shown}); say how many each machine has by cluster.gpus"
        )
    return ",".join(names[gpu] for gpu in gpus)


def main(gpus: str, arguments: Sequence[str]) -> None:
    """Become the module, which sees these GPUs alone."""
    try:
        visible = choose_visible([int(gpu) for gpu in gpus.split(",")], os.environ.get(VISIBLE))
    except ValueError as error:
        sys.exit(f"{ERROR_PREFIX}{error}")
    environment = {**ORDER, **os.environ, VISIBLE: visible}
    os.execve(sys.executable, python_module(arguments), environment)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
