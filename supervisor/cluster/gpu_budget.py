"""One GPU's memory, divided between what is on it: ranks of the learner, engines, keys and values.

Pure functions. What a GPU cannot hold is refused with the setting and the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from config import Config, ConfigError
from engine.gpus import Gpu
from supervisor.cluster.memory_budget import (
    ENGINE_ASLEEP_BYTES,
    GIB,
    EngineLoad,
    LearnerLoad,
    Part,
    engine_parts,
    exact,
    kv_bytes,
    lasting,
    learner_parts,
    total,
)
from supervisor.cluster.model_shape import ModelShape
from supervisor.cluster.placement import Place, Tenants

LARGEST_BATCH = 256
"""Most turns that an engine generates at once, unless engine.max_sequences says more."""

USEFUL_TURNS = 8
"""Longest turns that an engine beside the learner is to have room for; with less, it sleeps."""

SPARED_SHARE = 0.05
"""Share of its memory that a GPU keeps free where learner and engine share it."""

DTYPE_BYTES = {"float32": 4}
"""Bytes of an element of an engine's weights, where they are not two."""


@dataclass(frozen=True)
class GpuBudget:
    """A GPU's memory, and what is planned for it."""

    place: Place
    gpu: Gpu
    tenants: Tenants
    learner: list[Part]
    """Parts of all ranks that are there."""
    engine: list[Part]
    """Parts of all engines that are there, but for keys and values."""
    kv_cache_bytes: int = 0
    """Bytes for keys and values, of each engine."""
    sleeps: bool = False
    """True if learner and engines have it by turns."""

    @property
    def free_bytes(self) -> int:
        """Bytes that no other process has."""
        return self.gpu.memory_bytes - self.gpu.used_bytes

    @property
    def engine_bytes(self) -> int:
        """Bytes of all engines, keys and values included."""
        return total(self.engine) + len(self.tenants.engines) * self.kv_cache_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that is planned at once."""
        if not self.sleeps:
            return total(self.learner) + self.engine_bytes
        while_training = total(self.learner) + len(self.tenants.engines) * ENGINE_ASLEEP_BYTES
        return max(while_training, lasting(self.learner) + self.engine_bytes)

    @property
    def is_tight(self) -> bool:
        """True if estimates say that memory may run out."""
        return self.peak_bytes > self.free_bytes


def learner_load(config: Config) -> LearnerLoad:
    """Describe by the settings what a rank of the learner holds and computes.

    A turn that is longer than a micro-batch is one by itself.
    """
    learner = config.learner
    return LearnerLoad(
        ranks=learner.ranks,
        tokens=max(learner.microbatch_tokens, config.engine.max_model_len),
        precision=learner.precision,
        checkpoints_layers=learner.gradient_checkpointing,
        lora_rank=learner.lora_rank,
        has_reference=learner.kl_coef > 0,
        trains=config.run.max_updates > 0,
    )


def engine_load(config: Config, workers: int) -> EngineLoad:
    """Describe by the settings what one of an engine's workers holds and computes."""
    return EngineLoad(
        workers=workers,
        weight_bytes=DTYPE_BYTES.get(config.engine.dtype, 2),
        sequences=most_turns(config),
    )


def most_turns(config: Config) -> int:
    """Count the turns that an engine may have at once: engine.max_sequences, or what actors ask.

    Actors on other machines are not counted: they come and go.
    """
    if config.engine.max_sequences:
        return config.engine.max_sequences
    episodes = config.actor.count * config.actor.episodes_per_actor
    by_engine = math.ceil(episodes / config.engine.count)
    return min(LARGEST_BATCH, by_engine or LARGEST_BATCH)


def divide_gpu(
    config: Config, shape: ModelShape, place: Place, gpu: Gpu, tenants: Tenants, workers: int = 1
) -> GpuBudget:
    """Divide a GPU's memory between its tenants; an engine has `workers` like the one that is here.

    Raises ConfigError naming the setting where the GPU does not hold them.
    """
    budget = GpuBudget(
        place,
        gpu,
        tenants,
        learner_parts(shape, learner_load(config)) * len(tenants.ranks),
        engine_parts(shape, engine_load(config, workers)) * len(tenants.engines),
    )
    if tenants.ranks:
        _check_learner(config, budget)
    if not tenants.engines:
        return budget
    _check_fraction(config, budget)
    longest = kv_bytes(shape, config.engine.max_model_len, workers)
    must_sleep = config.engine.sleep == "always" and bool(tenants.ranks)
    most = engine_load(config, workers).sequences * longest
    budget = _with_kv_cache(config, replace(budget, sleeps=must_sleep), most)
    may_sleep = config.engine.sleep == "auto" and bool(tenants.ranks) and config.cluster.shards == 1
    if may_sleep and (budget.kv_cache_bytes < USEFUL_TURNS * longest or budget.is_tight):
        budget = _with_kv_cache(config, replace(budget, sleeps=True), most)
    if budget.kv_cache_bytes < longest or _exact_bytes(budget) > budget.free_bytes:
        raise ConfigError(_describe_shortage(config, budget, longest))
    return budget


def turns_at_once(config: Config, shape: ModelShape, budget: GpuBudget, workers: int = 1) -> int:
    """Count the turns that an engine generates at once.

    They are engine.max_sequences, or as many as actors ask for and its KV cache holds of the
    longest.
    """
    if config.engine.max_sequences:
        return config.engine.max_sequences
    longest = kv_bytes(shape, config.engine.max_model_len, workers)
    return max(1, min(most_turns(config), budget.kv_cache_bytes // longest))


def describe_parts(parts: list[Part]) -> str:
    """Name parts with their sizes, those of the same name together."""
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.name] = sizes.get(part.name, 0) + part.bytes
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in sizes.items())


def _exact_bytes(budget: GpuBudget) -> int:
    """Bytes that a GPU needs for certain while engines generate."""
    learner = budget.learner
    if budget.sleeps:
        learner = [part for part in learner if part.is_lasting]
    kv_cache_bytes = len(budget.tenants.engines) * budget.kv_cache_bytes
    return exact(learner) + exact(budget.engine) + kv_cache_bytes


def _check_fraction(config: Config, budget: GpuBudget) -> None:
    """Raise ConfigError where others have what an engine is to have of its GPU."""
    fraction = config.engine.gpu_memory_fraction
    if budget.tenants.is_shared or fraction * budget.gpu.memory_bytes <= budget.free_bytes:
        return
    raise ConfigError(
        f"engine.gpu_memory_fraction: the engine is to have {fraction:g} of its GPU, and "
        f"{_describe_gpu(budget)}; lower it to "
        f"{budget.free_bytes / budget.gpu.memory_bytes - 0.005:.2f}, or end what uses the memory"
    )


def _with_kv_cache(config: Config, budget: GpuBudget, most_bytes: int) -> GpuBudget:
    """Give keys and values what is meant for them, or what the others leave.

    On a shared GPU no engine takes more than `most_bytes`, which its turns can fill.
    """
    engines = len(budget.tenants.engines)
    if config.engine.kv_cache_gb:
        return replace(budget, kv_cache_bytes=int(config.engine.kv_cache_gb * GIB))
    room = int(config.engine.gpu_memory_fraction * budget.gpu.memory_bytes)
    if budget.tenants.is_shared:
        beside = total(budget.learner)
        if budget.sleeps:
            beside = lasting(budget.learner)
        room = int((1 - SPARED_SHARE) * budget.free_bytes) - beside
        room = min(room, total(budget.engine) + engines * most_bytes)
    return replace(budget, kv_cache_bytes=max(0, room - total(budget.engine)) // engines)


def _check_learner(config: Config, budget: GpuBudget) -> None:
    """Raise ConfigError for ranks whose weights and optimizer alone do not fit."""
    needed = exact(budget.learner)
    if needed <= budget.free_bytes:
        return
    learner = config.learner
    remedies = ["more ranks (learner.ranks)"]
    if not learner.lora_rank:
        remedies.append("adapters (learner.lora_rank)")
    raise ConfigError(
        f"learner.ranks: a rank needs {needed / GIB:.1f} GiB for weights and optimizer alone "
        f"({describe_parts([part for part in budget.learner if part.is_exact])}), and "
        f"{_describe_gpu(budget)}; give {' or '.join(remedies)}"
    )


def _describe_shortage(config: Config, budget: GpuBudget, longest: int) -> str:
    """Say why an engine has no room for one turn of `longest` bytes, and what to change."""
    name = "engine.gpu_memory_fraction"
    remedy = "raise it"
    if config.engine.kv_cache_gb:
        name = "engine.kv_cache_gb"
    elif budget.tenants.is_shared:
        name = "engine.devices"
        remedy = "give engine and learner GPUs of their own"
    beside = ""
    if budget.learner:
        beside = f"; the learner beside it {describe_parts(budget.learner)}"
    return (
        f"{name}: the KV cache of one turn of engine.max_model_len "
        f"{config.engine.max_model_len:,} tokens takes {longest / GIB:.1f} GiB, and "
        f"{budget.kv_cache_bytes / GIB:.1f} are left for it: {_describe_gpu(budget)}, the engine "
        f"takes {describe_parts(budget.engine)}{beside}; {remedy}, or lower engine.max_model_len"
    )


def _describe_gpu(budget: GpuBudget) -> str:
    used = ""
    if budget.gpu.used_bytes > GIB:
        used = f", of which others have {budget.gpu.used_bytes / GIB:.1f}"
    return f"GPU {budget.place.gpu} has {budget.gpu.memory_bytes / GIB:.1f} GiB{used}"
