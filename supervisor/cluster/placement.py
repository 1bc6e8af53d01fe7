"""Placement of a run's processes on the GPUs of its machines: pure functions.

Ranks of the learner come first, engines next, each worker on a GPU of its own. On a machine with
one GPU, a rank and an engine share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from config import ConfigError


@dataclass(frozen=True)
class Workers:
    """Processes to be placed: engines and ranks of the learner, each with its machine."""

    engine_machines: tuple[int, ...]
    """Machine of each engine."""
    rank_machines: tuple[int, ...]
    """Machine of each rank of the learner."""
    tensor_parallel: int = 1
    """GPUs of an engine, all on its machine."""

    @property
    def machines(self) -> int:
        """Count the machines, up to the last that has something."""
        return 1 + max((*self.engine_machines, *self.rank_machines, 0))

    def engines_on(self, machine: int) -> list[int]:
        """Number the engines of a machine."""
        return _numbers_on(self.engine_machines, machine)

    def ranks_on(self, machine: int) -> list[int]:
        """Number the ranks of a machine."""
        return _numbers_on(self.rank_machines, machine)

    def describe(self, machine: int) -> str:
        """Say what a machine is to have, and the settings that ask for it."""
        ranks = len(self.ranks_on(machine))
        engines = len(self.engines_on(machine))
        return (
            f"{ranks} ranks of the learner (learner.ranks) and {engines} engines (engine.count) "
            f"of {self.tensor_parallel}"
        )


class Place(NamedTuple):
    """A GPU, by its number among those that its machine shows."""

    machine: int
    gpu: int


@dataclass(frozen=True)
class Tenants:
    """Processes on one GPU, by number."""

    engines: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def is_shared(self) -> bool:
        """True if several processes are there."""
        return len(self.engines) + len(self.ranks) > 1


@dataclass(frozen=True)
class Placement:
    """The GPUs of each process, by their numbers on its machine."""

    workers: Workers
    engines: tuple[tuple[int, ...], ...]
    """The GPUs of each engine."""
    ranks: tuple[int, ...]
    """The GPU of each rank of the learner."""

    def tenants(self) -> dict[Place, Tenants]:
        """Say what is on each GPU that something is on, in the order of the GPUs."""
        found: dict[Place, Tenants] = {}
        for place in sorted({*self._rank_places(), *self._engine_places()}):
            engines = [
                number
                for number, gpus in enumerate(self.engines)
                if self.workers.engine_machines[number] == place.machine and place.gpu in gpus
            ]
            ranks = [number for number, at in enumerate(self._rank_places()) if at == place]
            found[place] = Tenants(tuple(engines), tuple(ranks))
        return found

    def _rank_places(self) -> list[Place]:
        return [
            Place(machine, gpu)
            for machine, gpu in zip(self.workers.rank_machines, self.ranks, strict=True)
        ]

    def _engine_places(self) -> list[Place]:
        return [
            Place(machine, gpu)
            for machine, gpus in zip(self.workers.engine_machines, self.engines, strict=True)
            for gpu in gpus
        ]


def place_workers(
    workers: Workers,
    gpu_counts: Sequence[int],
    engine_gpus: Sequence[int] = (),
    rank_gpus: Sequence[int] = (),
) -> Placement:
    """Place all workers on machines of so many GPUs (`gpu_counts`, by machine).

    `engine_gpus` and `rank_gpus` are the user's choice, in the order of engine.devices (all of the
    first engine, then those of the next) and learner.devices. It holds, and the others get what it
    leaves. Raises ConfigError naming the setting where there are too few GPUs.
    """
    width = workers.tensor_parallel
    _check_count("engine.devices", engine_gpus, width * len(workers.engine_machines))
    _check_count("learner.devices", rank_gpus, len(workers.rank_machines))
    engines = _group(engine_gpus, width)
    ranks = dict(enumerate(rank_gpus))
    _check_chosen("engine.devices", engines, workers.engine_machines, gpu_counts)
    _check_chosen(
        "learner.devices",
        {number: (gpu,) for number, gpu in ranks.items()},
        workers.rank_machines,
        gpu_counts,
    )
    _check_ranks_apart(workers.rank_machines, rank_gpus)
    for machine in range(workers.machines):
        unplaced_engines = [n for n in workers.engines_on(machine) if n not in engines]
        unplaced_ranks = [n for n in workers.ranks_on(machine) if n not in ranks]
        taken = {gpu for n in workers.engines_on(machine) for gpu in engines.get(n, ())}
        taken |= {ranks[n] for n in workers.ranks_on(machine) if n in ranks}
        free = [gpu for gpu in range(gpu_counts[machine]) if gpu not in taken]
        needed = len(unplaced_ranks) + width * len(unplaced_engines)
        if needed > len(free):
            _check_shares(workers, machine, gpu_counts[machine])
            free = [0] * needed
        for number, gpu in zip(unplaced_ranks, free, strict=False):
            ranks[number] = gpu
        rest = free[len(unplaced_ranks) :]
        for position, number in enumerate(unplaced_engines):
            engines[number] = tuple(rest[width * position : width * (position + 1)])
    return Placement(
        workers,
        tuple(engines[number] for number in sorted(engines)),
        tuple(ranks[number] for number in sorted(ranks)),
    )


def _numbers_on(machines: Sequence[int], machine: int) -> list[int]:
    return [number for number, place in enumerate(machines) if place == machine]


def _group(gpus: Sequence[int], width: int) -> dict[int, tuple[int, ...]]:
    """Deal GPUs out to engines of so many, by number."""
    return {
        start // width: tuple(gpus[start : start + width]) for start in range(0, len(gpus), width)
    }


def _check_count(setting: str, gpus: Sequence[int], needed: int) -> None:
    """Raise ConfigError for a choice of more or fewer GPUs than there are workers."""
    if gpus and len(gpus) != needed:
        raise ConfigError(f"{setting}: {len(gpus)} GPUs are given, and {needed} are needed")


def _check_chosen(
    setting: str,
    chosen: dict[int, tuple[int, ...]],
    machines: Sequence[int],
    gpu_counts: Sequence[int],
) -> None:
    """Raise ConfigError for a GPU that its machine does not show, or that one worker has twice."""
    for number, gpus in chosen.items():
        count = gpu_counts[machines[number]]
        for gpu in gpus:
            if gpu >= count:
                raise ConfigError(
                    f"{setting}: there is no GPU {gpu} on a machine that shows {count} "
                    "(CUDA_VISIBLE_DEVICES); they are counted from 0"
                )
        if len(set(gpus)) < len(gpus):
            raise ConfigError(f"{setting}: one engine cannot have the same GPU twice")


def _check_ranks_apart(machines: Sequence[int], rank_gpus: Sequence[int]) -> None:
    """Raise ConfigError for two ranks on one GPU, which NCCL does not take."""
    places = list(zip(machines, rank_gpus, strict=False))
    for machine, gpu in places:
        if places.count((machine, gpu)) > 1:
            raise ConfigError(
                f"learner.devices: GPU {gpu} is given to several ranks; each needs one of its own"
            )


def _check_shares(workers: Workers, machine: int, count: int) -> None:
    """Raise ConfigError unless a machine has one GPU, for a rank and an engine together."""
    ranks = len(workers.ranks_on(machine))
    engines = len(workers.engines_on(machine))
    if count == 1 and ranks <= 1 and engines <= 1 and workers.tensor_parallel == 1:
        return
    needed = ranks + workers.tensor_parallel * engines
    raise ConfigError(
        f"engine.count: {workers.describe(machine)} GPUs need {needed}, and machine {machine} "
        f"shows {count}; have fewer of them, or let some share a GPU by engine.devices and "
        "learner.devices"
    )
