"""Plan a run on the GPUs that are here, or on those that its settings speak of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config, ConfigError
from config.model_files import read_model_files
from engine.gpus import Gpu, list_gpus
from engine.launch import on_cpu
from supervisor.cluster.model_shape import (
    ModelShape,
    read_shape,
    tiny_shape,
)
from supervisor.cluster.plan import (
    Plan,
    check_memory_is_known,
    check_sending,
    machines_of,
    make_plan,
)
from supervisor.cluster.plan_table import format_plan


def plan_run(config: Config, model: Path | None) -> Plan | None:
    """Plan a run that is about to start here; None where it computes on CPUs.

    `model` is its directory, None while that is not here. Raises ConfigError for what this machine
    does not have.
    """
    shown = shown_gpus()
    planned = config.cluster.gpus
    if config.cluster.learner_gpus and not config.cluster.learner_launch:
        raise ConfigError(
            "cluster.learner_gpus: the learner is to have a machine of its own, and nothing starts "
            "it there; begin by `run.py slurm` or `run.py ray`, or set cluster.learner_launch"
        )
    if not shown and not planned:
        return None
    if on_cpu():
        raise ConfigError(
            f"cluster.gpus: the run is planned for machines of {planned} GPUs, and the vLLM that "
            "is installed here is for CPUs; install the extra 'cuda', or look at the plan alone "
            "(--dry-run)"
        )
    if planned > len(shown):
        raise ConfigError(
            f"cluster.gpus: the run is planned for machines of {planned} GPUs, and this one shows "
            f"{len(shown)}; lower it, or see CUDA_VISIBLE_DEVICES and the driver"
        )
    machines = machines_of(config, shown)
    machines[0] = list(shown[: planned or None])
    shape, _ = find_shape(config, model)
    plan = make_plan(config, machines, shape)
    check_sending(config, plan)
    if model is not None:
        check_memory_is_known(config, plan)
    return plan


def describe_plan(config: Config) -> list[str]:
    """Lines that say what a run would have where; none where it would compute on CPUs.

    The machines are those that cluster.gpus speaks of, or this one. Raises ConfigError for what
    cannot be.
    """
    machines = machines_of(config, shown_gpus())
    if not machines:
        return []
    shape, source = find_shape(config, None)
    plan = make_plan(config, machines, shape)
    lines = ["Processes on GPUs, and their memory in GiB (docs/guides/gpus.md). What is neither"]
    lines += ["weights, gradients, optimizer, reference nor KV cache is an estimate."]
    lines += [f"{config.model.name}: {_describe_shape(shape, source)}"]
    return lines + format_plan(config, plan, [len(gpus) for gpus in machines], shape)


def shown_gpus() -> Sequence[Gpu]:
    """The GPUs that a run would use here; none where the installed vLLM is for CPUs."""
    if on_cpu():
        return []
    return list_gpus()


def find_shape(config: Config, model: Path | None) -> tuple[ModelShape | None, str]:
    """Find the model's shape, and say where its figures are from; (None, why) if they are not here.

    `model` is its directory, if it is elsewhere than model.name says.
    """
    name = config.model.name
    if name == "tiny":
        return tiny_shape(config.model.tiny), "by model.tiny"
    try:
        files = read_model_files(name, model)
        if files is None:
            return None, "its config.json is not here, and it is none of the known models"
        return read_shape(files.figures), files.source
    except (OSError, ValueError) as error:
        return None, f"its memory is not told: {error}"


def _describe_shape(shape: ModelShape | None, source: str) -> str:
    if shape is None:
        return source
    return f"{shape.weights() / 1e9:.2f} billion weights, {source}"
