"""A run's plan: which process is on which GPU of which machine, and how much memory each has there.

Pure functions of settings, of the model's shape and of the machines' GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config import Config, ConfigError, Devices, EngineDevice
from engine.gpus import Gpu
from engine.launch import worker_count
from supervisor.cluster.gpu_budget import GIB, GpuBudget, divide_gpu, turns_at_once
from supervisor.cluster.model_shape import ModelShape
from supervisor.cluster.placement import Placement, Workers, place_workers

SHARED_FRACTION = 0.1
"""--gpu-memory-utilization of an engine that shares its GPU.

vLLM asks at its start for so much to be free. What it takes follows from the bytes for its KV
cache, which are given.
"""


@dataclass(frozen=True)
class Plan:
    """Plan of what is where; `devices` is what the processes are told."""

    placement: Placement
    budgets: list[GpuBudget]
    """The memory of each GPU that something is on; empty if the model's shape is not known."""
    devices: Devices


def workers_of(config: Config) -> Workers:
    """List what a run has to place, and on which machines.

    The first has the controller, those of cluster.shard_hosts come next, then the learner's own.
    """
    cluster = config.cluster
    shard_machines = len(cluster.shard_hosts) + 1
    engines = config.engine.count
    if config.engine.urls:
        engines = 0
    return Workers(
        tuple(number % shard_machines for number in range(engines)),
        rank_machines(config),
        worker_count(config.engine.extra_args),
    )


def rank_machines(config: Config) -> tuple[int, ...]:
    """Number the machine of each rank of the learner, which has some of its own or is on the first.

    Ranks are dealt to cluster.learner_machines in their order, equally many to each.
    """
    cluster = config.cluster
    ranks = config.learner.ranks
    if not (cluster.learner_launch or cluster.learner_gpus):
        return (0,) * ranks
    first = len(cluster.shard_hosts) + 1
    return tuple(first + rank * cluster.learner_machines // ranks for rank in range(ranks))


def machines_of(config: Config, shown: Sequence[Gpu]) -> list[list[Gpu]]:
    """List the GPUs of each machine: as settings say, or else as of this machine (`shown`).

    There are none where neither has any. Raises ConfigError for GPUs whose memory nobody tells.
    """
    cluster = config.cluster
    if not cluster.gpus and not shown:
        return []
    workers = workers_of(config)
    machines = []
    for machine in range(workers.machines):
        count = cluster.gpus
        if machine > 0 and machine in workers.rank_machines:
            count = cluster.learner_gpus or count
        machines.append(_gpus_of(count, cluster.gpu_memory_gb, shown))
    return machines


def _gpus_of(count: int, memory_gb: float, shown: Sequence[Gpu]) -> list[Gpu]:
    """List a machine's GPUs: `count` of `memory_gb` each; of 0 either, as `shown`."""
    if not count and not memory_gb:
        return list(shown)
    if memory_gb:
        return [Gpu(f"{memory_gb:g} GiB", int(memory_gb * GIB))] * (count or len(shown))
    if not shown:
        raise ConfigError(
            "cluster.gpu_memory_gb: cluster.gpus speaks of GPUs that are not here; say what each "
            "has, such as 80"
        )
    smallest = min(shown, key=lambda gpu: gpu.memory_bytes)
    return [*shown, *[smallest] * count][:count]


def make_plan(config: Config, machines: Sequence[Sequence[Gpu]], shape: ModelShape | None) -> Plan:
    """Place a run's processes on the machines' GPUs, and give each its memory.

    Without a shape, memory is not told. Raises ConfigError naming the setting for what cannot be.
    """
    workers = workers_of(config)
    placement = place_workers(
        workers,
        [len(gpus) for gpus in machines],
        _read_numbers("engine.devices", config.engine.devices),
        _read_numbers("learner.devices", config.learner.devices),
    )
    if shape is None:
        return Plan(placement, [], _devices(config, placement, [], 0))
    budgets = [
        divide_gpu(
            config,
            shape,
            place,
            machines[place.machine][place.gpu],
            tenants,
            workers.tensor_parallel,
        )
        for place, tenants in placement.tenants().items()
    ]
    sequences = min(
        (
            turns_at_once(config, shape, budget, workers.tensor_parallel)
            for budget in budgets
            if budget.tenants.engines
        ),
        default=0,
    )
    return Plan(placement, budgets, _devices(config, placement, budgets, sequences))


def _read_numbers(setting: str, devices: Sequence[str]) -> list[int]:
    """Read GPUs' numbers. Raises ConfigError for what is none."""
    for device in devices:
        if not device.isdecimal():
            raise ConfigError(
                f"{setting}: {device!r} is no number; GPUs are counted from 0 as the machine shows "
                f"them, and CUDA_VISIBLE_DEVICES={device} shows that one alone"
            )
    return [int(device) for device in devices]


def check_sending(config: Config, plan: Plan) -> None:
    """Raise ConfigError where weights are to go from a GPU to itself, which NCCL does not do."""
    is_shared = any(tenants.is_shared for tenants in plan.placement.tenants().values())
    if config.engine.weights == "nccl" and is_shared:
        raise ConfigError(
            "engine.weights: nccl takes a GPU for the learner and another one for each engine, and "
            "some share one here; leave it at file"
        )


def check_memory_is_known(config: Config, plan: Plan) -> None:
    """Raise ConfigError for an engine that shares a GPU whose memory nobody can divide."""
    is_shared = any(tenants.is_shared for tenants in plan.placement.tenants().values())
    if is_shared and not plan.budgets and not config.engine.kv_cache_gb:
        raise ConfigError(
            "engine.kv_cache_gb: what a model of such a shape takes is not known here, and an "
            "engine shares its GPU; say how much its KV cache may take, or give each a GPU of its "
            "own"
        )


def _devices(
    config: Config, placement: Placement, budgets: Sequence[GpuBudget], sequences: int
) -> Devices:
    """Say what the processes are told of a placement."""
    sleeps = config.engine.sleep == "always" or any(budget.sleeps for budget in budgets)
    return Devices(
        engines=[
            _engine_device(config, number, placement, budgets)
            for number in range(len(placement.engines))
        ],
        learner=list(placement.ranks),
        sequences=sequences,
        sleeps=sleeps,
    )


def _engine_device(
    config: Config, number: int, placement: Placement, budgets: Sequence[GpuBudget]
) -> EngineDevice:
    """Say what an engine is told of its GPUs."""
    fraction = config.engine.gpu_memory_fraction
    kv_cache_bytes = int(config.engine.kv_cache_gb * GIB)
    shares = any(
        number in tenants.engines and tenants.is_shared for tenants in placement.tenants().values()
    )
    if shares:
        fraction = SHARED_FRACTION
        own = [budget.kv_cache_bytes for budget in budgets if number in budget.tenants.engines]
        kv_cache_bytes = min(own, default=kv_cache_bytes)
    return EngineDevice(
        gpus=list(placement.engines[number]),
        memory_fraction=fraction,
        kv_cache_bytes=kv_cache_bytes,
    )
