"""One GPU's memory: what is divided fits, and what cannot be is refused with the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Config, ConfigError
from config.resolve import resolve
from engine.gpus import Gpu
from supervisor.cluster.gpu_budget import GIB, GpuBudget, divide_gpu, turns_at_once
from supervisor.cluster.memory_budget import kv_bytes
from supervisor.cluster.placement import Place, Tenants
from tests.fixtures.shapes import shape_of

SHARED = Tenants(engines=(0,), ranks=(0,))
ENGINE = Tenants(engines=(0,), ranks=())
RANK = Tenants(engines=(), ranks=(0,))


def settings(**changes: str) -> Config:
    """Settings of a model with texts of 4,096 tokens; `changes` as section__name."""
    usual = {
        "model": "Qwen/Qwen3-4B",
        "engine.max_model_len": "4096",
        "learner.precision": "bfloat16",
        "learner.gradient_checkpointing": "true",
    }
    return resolve(
        None, usual | {name.replace("__", "."): value for name, value in changes.items()}
    )


def divide(
    name: str, tenants: Tenants, size_gib: float = 80, used_gib: float = 0, **changes: str
) -> GpuBudget:
    """Divide a GPU of that size between tenants with that model."""
    gpu = Gpu("H100", int(size_gib * GIB), int(used_gib * GIB))
    return divide_gpu(settings(**changes), shape_of(name), Place(0, 0), gpu, tenants)


def refused(name: str, tenants: Tenants, size_gib: float = 80, **changes: str) -> str:
    """Return what is said where a GPU does not hold its tenants."""
    with pytest.raises(ConfigError) as error:
        divide(name, tenants, size_gib, **changes)
    return str(error.value)


@given(
    st.sampled_from(["0.6B", "1.7B", "4B", "8B", "30B-A3B"]),
    st.sampled_from([SHARED, ENGINE, RANK]),
    st.sampled_from([16, 24, 40, 80, 141]),
    st.sampled_from(["0", "16"]),
    st.sampled_from(["auto", "always", "never"]),
)
def test_divide_gpu_gives_no_more_than_there_is_and_room_for_one_turn(
    name: str, tenants: Tenants, size_gib: int, rank: str, sleep: str
) -> None:
    """Whatever is on a GPU, engines have room for the longest turn, or it is refused."""
    changes = {"learner__lora_rank": rank, "engine__sleep": sleep}
    try:
        budget = divide(name, tenants, size_gib, **changes)
    except ConfigError:
        return
    if tenants.engines:
        assert budget.kv_cache_bytes >= kv_bytes(shape_of(name), 4096)
        assert budget.engine_bytes <= budget.free_bytes
    if budget.is_tight:
        assert tenants.ranks  # whose activations are estimates
    if sleep == "never" or not tenants.ranks or not tenants.engines:
        assert not budget.sleeps


def test_divide_gpu_small_model_is_beside_the_learner() -> None:
    """Qwen3-0.6B: engine and learner have 80 GB together, and nobody sleeps."""
    budget = divide("0.6B", SHARED)
    assert not budget.sleeps and not budget.is_tight


def test_divide_gpu_large_model_takes_turns_with_the_learner() -> None:
    """Qwen3-4B: weights, gradients and moments take 60 GiB, and the engine sleeps meanwhile."""
    budget = divide("4B", SHARED)
    assert budget.sleeps and not budget.is_tight
    assert "GiB" in refused("4B", SHARED, engine__sleep="never")


def test_divide_gpu_adapters_need_no_turns() -> None:
    """Qwen3-4B with LoRA and its engine are on 80 GB side by side."""
    assert not divide("4B", SHARED, learner__lora_rank="32").sleeps


def test_divide_gpu_weights_and_moments_that_do_not_fit_are_refused() -> None:
    """Qwen3-8B takes 122 GiB on one rank; the numbers and what helps are said."""
    said = refused("8B", RANK)
    assert said.startswith("learner.ranks: ")
    assert "needs 122.1 GiB" in said and "has 80.0 GiB" in said and "learner.lora_rank" in said
    assert divide("8B", RANK, learner__ranks="2").place.gpu == 0


def test_divide_gpu_evaluation_needs_the_weights_alone() -> None:
    """Qwen3-8B is not trained on one GPU of 80 GB, and is evaluated there."""
    budget = divide("8B", SHARED, run__max_updates="0")
    assert {part.name for part in budget.learner} == {"weights", "runtime"}
    assert not budget.sleeps


def test_divide_gpu_engine_without_room_for_a_turn_is_refused() -> None:
    """Qwen3-8B's weights leave nothing of 16 GB; settings and sizes are said."""
    said = refused("8B", ENGINE, 16)
    assert said.startswith("engine.gpu_memory_fraction: ") and "weights 15.3" in said


def test_divide_gpu_kv_cache_of_the_user_holds() -> None:
    """The size that is given is neither raised nor lowered, and refused where it is too large."""
    assert divide("0.6B", SHARED, engine__kv_cache_gb="3").kv_cache_bytes == 3 * GIB
    assert divide("0.6B", ENGINE, engine__kv_cache_gb="3").kv_cache_bytes == 3 * GIB
    assert refused("0.6B", SHARED, engine__kv_cache_gb="100").startswith("engine.kv_cache_gb: ")


def test_divide_gpu_memory_of_others_is_left_to_them() -> None:
    """What other processes have is neither given to the learner nor to an engine."""
    assert divide("4B", RANK, used_gib=15).free_bytes == 65 * GIB
    with pytest.raises(
        ConfigError, match=r"gpu_memory_fraction: .* others have 20\.0; lower .* 0\.74"
    ):
        divide("4B", ENGINE, used_gib=20)
    with pytest.raises(ConfigError, match=r"learner\.ranks: .* others have 30\.0"):
        divide("4B", RANK, used_gib=30)


def test_divide_gpu_activations_beyond_memory_make_it_tight() -> None:
    """An estimate refuses nothing: it is said."""
    changes = {"learner__microbatch_tokens": "65536", "learner__gradient_checkpointing": "false"}
    assert divide("0.6B", RANK, **changes).is_tight


def test_turns_at_once_follow_the_kv_cache_unless_they_are_given() -> None:
    """As many of the longest turns as there is room for, and as actors ask for; 256 at most."""
    shape = shape_of("8B")
    budget = divide("8B", ENGINE)
    held = budget.kv_cache_bytes // kv_bytes(shape, 4096)
    assert turns_at_once(settings(actor__count="0"), shape, budget) == held < 256
    assert turns_at_once(settings(engine__max_sequences="7"), shape, budget) == 7
    short = {"engine__max_model_len": "256", "sampling__max_tokens": "128"}
    assert turns_at_once(settings(actor__count="0", **short), shape, budget) == 256
    assert turns_at_once(settings(actor__count="100", **short), shape, budget) == 100
