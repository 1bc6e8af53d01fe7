"""Budgets of memory: arithmetic where there is one, and what autograd keeps where there is none."""

from __future__ import annotations

import pytest

from learner.model.head import CHUNK_LOGITS
from supervisor.cluster.memory_budget import (
    HEAD_LOGITS,
    EngineLoad,
    LearnerLoad,
    activation_bytes,
    engine_parts,
    exact,
    kv_bytes,
    lasting,
    learner_parts,
    total,
)
from supervisor.cluster.model_shape import read_shape
from tests.fixtures.memory import SIZES, fake_ranks, measure_memory, shorten
from tests.fixtures.shapes import shape_of

WEIGHTS = {
    "0.6B": 596_049_920,
    "1.7B": 1_720_574_976,
    "4B": 4_022_468_096,
    "8B": 8_190_735_360,
    "30B-A3B": 30_532_122_624,
}


def load(**changes: object) -> LearnerLoad:
    """What a learner of one rank computes, in bfloat16."""
    plain = LearnerLoad(
        ranks=1,
        tokens=4096,
        precision="bfloat16",
        checkpoints_layers=False,
        lora_rank=0,
        has_reference=False,
    )
    return plain._replace(**changes)


def sizes(parts: list) -> dict[str, int]:
    """Name of each part -> its bytes."""
    return {part.name: part.bytes for part in parts}


@pytest.mark.parametrize(("name", "weights"), WEIGHTS.items())
@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_learner_parts_weights_gradients_and_moments_take_16_bytes_a_weight(
    name: str, weights: int, ranks: int
) -> None:
    """Float32 weights and gradients, and AdamW's two moments, are shared by the ranks."""
    parts = learner_parts(shape_of(name), load(ranks=ranks))
    found = sizes(parts)
    assert found["weights"] == found["gradients"] == 4 * weights // ranks
    assert found["optimizer"] == 8 * weights // ranks
    assert exact(parts) == pytest.approx(16 * weights / ranks, abs=3)


def test_learner_parts_adapters_alone_have_gradients_and_moments() -> None:
    """With LoRA the frozen weights take four bytes each, and the adapters sixteen."""
    shape = shape_of("4B")
    adapters = shape.adapter_weights(32)
    parts = learner_parts(shape, load(lora_rank=32))
    assert exact(parts) == 4 * shape.weights() + 16 * adapters
    assert sizes(parts)["head"] < sizes(learner_parts(shape, load()))["head"]


def test_learner_parts_reference_is_another_copy_of_the_weights() -> None:
    """A distance to a reference needs its weights, and nothing for their training."""
    shape = shape_of("0.6B")
    more = exact(learner_parts(shape, load(has_reference=True))) - exact(
        learner_parts(shape, load())
    )
    assert more == 4 * shape.weights()


def test_learner_parts_between_updates_have_neither_gradients_nor_activations() -> None:
    """What lasts are weights, moments and what libraries keep."""
    parts = learner_parts(shape_of("0.6B"), load())
    assert {part.name for part in parts if part.is_lasting} == {"weights", "optimizer", "runtime"}
    assert lasting(parts) < total(parts)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0.6B", "4B"])
@pytest.mark.parametrize("checkpoints_layers", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_activation_bytes_of_layers_agree_with_what_autograd_keeps(
    size: str, checkpoints_layers: bool, precision: str
) -> None:
    """Two layers more keep as much more, within a tenth, as the estimate says."""
    tokens = 2048
    measured = []
    expected = []
    with fake_ranks(2) as ranks:
        for layers in (2, 4):
            config = shorten(SIZES[size], layers)
            memory = measure_memory(
                config,
                tokens,
                tokens // 2,
                checkpointing=checkpoints_layers,
                ranks=ranks,
                precision=precision,
            )
            measured.append(memory.kept_bytes)
            work = load(tokens=tokens, precision=precision, checkpoints_layers=checkpoints_layers)
            expected.append(activation_bytes(read_shape(config.to_dict()), work))
    assert measured[1] - measured[0] == pytest.approx(expected[1] - expected[0], rel=0.1)


def test_head_logits_are_the_chunk_of_the_learners_head() -> None:
    """The budget speaks of as many logits as the head has at a time."""
    assert HEAD_LOGITS == CHUNK_LOGITS


@pytest.mark.parametrize(("name", "weights"), WEIGHTS.items())
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_engine_parts_weights_are_divided_between_workers(
    name: str, weights: int, workers: int
) -> None:
    """Two bytes a weight in bfloat16, four in float32, over the tensor-parallel workers."""
    shape = shape_of(name)
    for bytes_each in (2, 4):
        parts = engine_parts(shape, EngineLoad(workers, bytes_each, 256))
        assert sizes(parts)["weights"] == bytes_each * weights // workers


def test_kv_bytes_are_divided_between_workers_down_to_one_head_each() -> None:
    """Eight heads of keys and values go over two workers; over sixteen, each has one."""
    shape = shape_of("8B")
    whole = 4096 * 144 * 1024
    assert kv_bytes(shape, 4096) == whole
    assert kv_bytes(shape, 4096, 2) == whole // 2
    assert kv_bytes(shape, 4096, 16) == whole // 8
