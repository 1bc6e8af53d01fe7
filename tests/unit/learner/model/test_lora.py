"""LoRA: what is trained, what leaves the learner, and how training goes on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from config import Job
from learner import checkpoint
from learner.data.batching import collate
from learner.data.samples import TrainingSample, build_samples
from learner.model.lora import adapter_tensors, adapters
from learner.model.policy import load_policy, log_probs
from learner.model.sharding import full_state_dict
from learner.training import Training
from protocol.messages import Trajectory
from tests.fixtures.learner import job_of_tiny, random_group, small_config

pytest.importorskip("peft", reason="LoRA needs the extra lora")

RANK = 3
ALPHA = 6.0
CONFIG = small_config(
    warm_start__episodes="0",
    learner__learning_rate="1e-2",
    learner__lora_rank=str(RANK),
    learner__lora_alpha=str(ALPHA),
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_of_tiny(tmp_path, CONFIG)


def begun(job: Job) -> Training:
    return Training.begin(job, lambda *_: None)


def groups(seed: int) -> list[list[Trajectory]]:
    rng = np.random.default_rng(seed)
    return [random_group(rng, 300, g) for g in range(2)]


def samples() -> list[TrainingSample]:
    return build_samples(groups(0), 1, CONFIG.learner)


def checkpointed(training: Training) -> Path:
    return training.checkpoint()


def test_adapters_change_nothing_before_they_are_trained(job: Job) -> None:
    before = load_policy(Path(job.model_dir)).state_dict()
    for name, weight in full_state_dict(begun(job).model):
        assert torch.equal(weight, before[name])


def test_every_matrix_of_the_layers_is_trained_and_nothing_else(job: Job) -> None:
    training = begun(job)
    before = dict(full_state_dict(training.model))
    training.update(groups(0))
    changed = {
        name
        for name, weight in full_state_dict(training.model)
        if not torch.equal(weight, before[name])
    }
    assert changed == {
        name for name, weight in before.items() if ".layers." in name and weight.ndim == 2
    }


def test_what_is_published_is_the_textbook_sum(job: Job) -> None:
    """W + (alpha / r) B A, eq. 3 of the paper."""
    training = begun(job)
    before = dict(full_state_dict(training.model))
    training.update(groups(0))
    published = training.snapshot().tensors
    kept = adapter_tensors(training.model)
    names = [name for name, _ in adapters(training.model)]
    assert len(names) == 7 * CONFIG.model.tiny.layers
    for name in names:
        expected = before[name].double() + ALPHA / RANK * (
            kept[f"{name}.lora_B"].double() @ kept[f"{name}.lora_A"].double()
        )
        torch.testing.assert_close(
            published[name].double(), expected, rtol=0, atol=4e-3 * float(expected.abs().max())
        )  # it is bfloat16


def test_the_engine_gets_the_policy_that_is_trained(job: Job) -> None:
    """As merged weights compute it, in a model without adapters."""
    training = begun(job)
    training.update(groups(0))
    engine = load_policy(checkpointed(training))
    batch = collate([[one] for one in samples()])
    with torch.no_grad():
        trained, _ = log_probs(training.model, batch, 1.0)
        merged, _ = log_probs(engine, batch, 1.0)
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(job: Job) -> None:
    """To float error: the checkpoint has merged weights, which adapters come out of again."""
    training = begun(job)
    training.update(groups(0))
    checkpointed(training)
    restored = Training.restore(job, lambda *_: None)
    for name, tensor in adapter_tensors(training.model).items():
        assert torch.equal(tensor, adapter_tensors(restored.model)[name])
    first = training.update(groups(1))
    second = restored.update(groups(1))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "trained with adapters"), (5, "adapters have rank 3, not 5")]
)
def test_a_checkpoint_of_another_rank_is_refused(job: Job, rank: int, message: str) -> None:
    checkpointed(begun(job))
    learner = msgspec.structs.replace(job.config.learner, lora_rank=rank)
    other = msgspec.structs.replace(
        job, config=msgspec.structs.replace(job.config, learner=learner)
    )
    with pytest.raises(ValueError, match=rf"learner\.lora_rank: .*{message}"):
        Training.restore(other, lambda *_: None)


def test_the_reference_is_the_policy_that_training_has_come_to(job: Job) -> None:
    """With reference_every, adapters merged."""
    learner = msgspec.structs.replace(
        job.config.learner, kl_coef=0.5, reference_every=1, learning_rate=0.0
    )
    job = msgspec.structs.replace(job, config=msgspec.structs.replace(job.config, learner=learner))
    training = begun(job)
    with torch.no_grad():
        for _, adapter in adapters(training.model):
            adapter.b.add_(0.1)
    assert training.update(groups(0))["kl_reference"] > 1e-3  # of the first policy
    assert training.update(groups(1))["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert checkpoint.reference_dir(checkpointed(training)) is not None
