"""What tests/test_learner_ranks.py runs on several ranks, and on one: `... DIRECTORY NAME`.

For each case, the job of DIRECTORY/CASE is trained on three batches, with a checkpoint and a resume
after the second one. Rank 0 writes DIRECTORY/CASE/NAME.pt: the gradients of the first step, the
metrics, the weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from learner_fixtures import job_in, random_group, small_config

from config import Config, Job
from learner.checkpoint import IntakeState
from learner.model.sharding import full_state_dict, full_tensor
from learner.ranks import Ranks
from learner.training import Training
from protocol.lifetime import die_with

VOCABULARY = 300


def config_of(settings: dict[str, str]) -> Config:
    return small_config(warm_start__episodes="0", learner__microbatch_tokens="100", **settings)


def groups(seed: int):
    rng = np.random.default_rng(seed)
    return [random_group(rng, VOCABULARY, g, versions=(0, 1)) for g in range(3)]


CASES = {
    "reference": {
        "learner__kl_coef": "0.3",
        "learner__reference_every": "1",
        "learner__loss": "decoupled",
    },
    "value head": {"learner__algorithm": "gae", "learner__loss": "vtrace"},
    "adapters": {"learner__lora_rank": "4", "learner__gradient_checkpointing": "true"},
}
"""Settings of the learner, named section__name."""


def main(directory: Path, name: str) -> None:
    die_with(os.getppid())
    ranks = Ranks.join()
    torch.set_num_threads(1)
    for case, settings in CASES.items():
        found = trained(job_in(directory / case, config_of(settings)), ranks)
        if not ranks.rank:
            torch.save(found, directory / case / f"{name}.pt")
    ranks.close()


def trained(job: Job, ranks: Ranks) -> dict:
    """What all ranks together come to."""
    training = Training.begin(job, lambda *_: None, ranks)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_) -> None:
        if not gradients:
            gradients.update(
                {
                    n: full_tensor(p.grad).clone()
                    for n, p in training.model.named_parameters()
                    if p.grad is not None
                }
            )

    training.optimizer.register_step_pre_hook(keep)
    metrics = [training.update(groups(seed)) for seed in (0, 1)]
    training.checkpoint(IntakeState(log_position=1, next_group=2, next_evaluation=3))
    training = Training.restore(job, lambda *_: None, ranks)
    metrics.append(training.update(groups(2)))
    weights = {n: tensor.clone() for n, tensor in full_state_dict(training.model)}
    return {
        "gradients": gradients,
        "metrics": metrics,
        "weights": weights,
        "published": training.snapshot().tensors,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
