"""A run's plan as lines of text: where each process is, and what it takes of each GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from config import Config
from supervisor.cluster.gpu_budget import GIB, GpuBudget
from supervisor.cluster.memory_budget import ENGINE_ASLEEP_BYTES, Part, kv_bytes, lasting, total
from supervisor.cluster.model_shape import ModelShape
from supervisor.cluster.plan import Plan

NAME_WIDTH = 16
COLUMN_WIDTH = 21

Column = tuple[str, dict[str, int]]
"""A title, and the bytes of each part."""


def format_plan(
    config: Config, plan: Plan, gpu_counts: Sequence[int], shape: ModelShape | None
) -> list[str]:
    """Lines that say what is on each GPU of each machine (of `gpu_counts`), in GiB."""
    lines = []
    for machine, count in enumerate(gpu_counts):
        budgets = [budget for budget in plan.budgets if budget.place.machine == machine]
        if not budgets:
            lines.append(_describe_places(plan, machine))
            continue
        size = budgets[0].gpu.memory_bytes / GIB
        lines += [f"Machine {machine}: {count} GPUs of {size:.1f} GiB", ""]
        lines += _format_columns(_columns(budgets))
        lines += [""]
        used = {budget.place.gpu for budget in budgets}
        idle = [gpu for gpu in range(count) if gpu not in used]
        if idle:
            lines.append(f"Nothing is on GPU {format_numbers(idle)}.")
        lines += [sentence for budget in budgets for sentence in _remarks(budget)]
    if shape is not None:
        lines += _format_kv_cache(config, plan, shape)
    return lines


def format_numbers(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as a range: 0-3, 6."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(
        str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        for numbers in ranges
    )


def _describe_places(plan: Plan, machine: int) -> str:
    """Say where processes are whose memory is not known."""
    workers = plan.placement.workers
    ranks = [plan.placement.ranks[number] for number in workers.ranks_on(machine)]
    engines = [gpu for n in workers.engines_on(machine) for gpu in plan.placement.engines[n]]
    return (
        f"Machine {machine}: the learner on GPU {format_numbers(ranks) or '-'}, engines on GPU "
        f"{format_numbers(engines) or '-'}; what they take is not known for such a model"
    )


def _columns(budgets: Sequence[GpuBudget]) -> list[Column]:
    """The columns of a machine: GPUs that have the same of one kind of process share one."""
    gpus: dict[tuple, list[int]] = {}
    for budget in budgets:
        if budget.tenants.ranks:
            gpus.setdefault(("learner", tuple(budget.learner)), []).append(budget.place.gpu)
        if budget.tenants.engines:
            engines = len(budget.tenants.engines)
            cache = Part("KV cache", engines * budget.kv_cache_bytes, True)
            gpus.setdefault(("engine", (*budget.engine, cache)), []).append(budget.place.gpu)
    return [
        (f"GPU {format_numbers(numbers)}: {kind}", _sum_by_name(parts))
        for (kind, parts), numbers in gpus.items()
    ]


def _sum_by_name(parts: Sequence[Part]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.name] = sizes.get(part.name, 0) + part.bytes
    return sizes


def _format_columns(columns: Sequence[Column]) -> Iterator[str]:
    """Give the lines of a table with a row for each part, and their sum."""
    names = list(dict.fromkeys(name for _, sizes in columns for name in sizes))
    yield " " * NAME_WIDTH + "".join(f"{title:>{COLUMN_WIDTH}}" for title, _ in columns)
    for name in names:
        yield f"{name:{NAME_WIDTH}}" + "".join(_cell(sizes.get(name)) for _, sizes in columns)
    yield f"{'in all':{NAME_WIDTH}}" + "".join(_cell(sum(sizes.values())) for _, sizes in columns)


def _cell(size: int | None) -> str:
    if size is None:
        return f"{'-':>{COLUMN_WIDTH}}"
    return f"{size / GIB:{COLUMN_WIDTH}.1f}"


def _remarks(budget: GpuBudget) -> Iterator[str]:
    """Say what is special about a GPU: that it is shared, or that it is tight."""
    gpu = budget.place.gpu
    if budget.sleeps:
        asleep = len(budget.tenants.engines) * ENGINE_ASLEEP_BYTES
        training = (total(budget.learner) + asleep) / GIB
        generating = (lasting(budget.learner) + budget.engine_bytes) / GIB
        yield (
            f"GPU {gpu} is shared by turns: the engine sleeps while an update is computed "
            f"({training:.1f} GiB then, {generating:.1f} between)."
        )
    elif budget.tenants.is_shared:
        yield f"GPU {gpu} is shared: {budget.peak_bytes / GIB:.1f} GiB in all."
    if budget.is_tight:
        yield (
            f"GPU {gpu} is tight: by estimates {budget.peak_bytes / GIB:.1f} of "
            f"{budget.free_bytes / GIB:.1f} GiB; lower learner.microbatch_tokens, or set "
            "learner.gradient_checkpointing."
        )


def _format_kv_cache(config: Config, plan: Plan, shape: ModelShape) -> Iterator[str]:
    """Say how many turns an engine's KV cache holds."""
    engines = [budget for budget in plan.budgets if budget.tenants.engines]
    if not engines:
        return
    workers = plan.placement.workers.tensor_parallel
    tokens = config.engine.max_model_len
    smallest = min(budget.kv_cache_bytes for budget in engines)
    turns = smallest // kv_bytes(shape, tokens, workers)
    yield (
        f"An engine's KV cache: {kv_bytes(shape, 1, workers) / 1024:,.0f} KiB a token, room for "
        f"{turns:,} turns of {tokens:,} tokens"
    )
    yield (
        f"(engine.max_model_len); at most {plan.devices.sequences} turns at once "
        "(engine.max_sequences)."
    )
