"""Weights as the learner publishes them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from learner.model.policy import load_policy
from learner.publish import WeightWriter, copy_weights
from learner.warm_start.build import build_policy
from tests.fixtures.runs import (
    job_in,
    small_config,
)


def test_published_weights_are_a_safetensors_file_of_the_checkpoints_names(tmp_path: Path):
    job = job_in(tmp_path / "run", small_config())
    build_policy(job)
    weights = WeightWriter(tmp_path).write(
        copy_weights(load_policy(Path(job.model_dir)), 3, "float32")
    )
    assert set(load_file(weights.path)) == set(load_file(Path(job.model_dir) / "model.safetensors"))
