"""What tests/test_learner_ranks.py runs on several ranks, and on one: `... DIRECTORY NAME SETTINGS`, settings as section__name=value.

The job of DIRECTORY is trained on three batches, with a checkpoint and a resume after the second one. Rank 0 writes DIRECTORY/NAME.pt: the
gradients of the first step, the metrics, the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from learner_fixtures import job_in, random_group, small_config

from config import Config
from learner.ranks import Ranks
from learner.sharding import whole, whole_weights
from learner.training import Training

VOCABULARY = 300


def config_of(settings: dict[str, str]) -> Config:
    return small_config(warm_start__episodes="0", learner__microbatch_tokens="100", **settings)


def groups(seed: int):
    rng = np.random.default_rng(seed)
    return [random_group(rng, VOCABULARY, g, versions=(0, 1)) for g in range(3)]


def main(directory: Path, name: str, *settings: str) -> None:
    ranks = Ranks.join()
    torch.set_num_threads(1)
    job = job_in(directory, config_of(dict(setting.split("=") for setting in settings)))
    training = Training.begin(job, lambda *_: None, ranks)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_) -> None:
        if not gradients:
            gradients.update({n: whole(p.grad).clone() for n, p in training.model.named_parameters() if p.grad is not None})

    training._updater.optimizer.register_step_pre_hook(keep)
    metrics = [training.update(groups(seed)) for seed in (0, 1)]
    training.checkpoint(log_position=1, next_group=2, next_evaluation=3)
    training = Training.restore(job, lambda *_: None, ranks)
    metrics.append(training.update(groups(2)))
    weights = {n: tensor.clone() for n, tensor in whole_weights(training.model).items()}
    published = training.snapshot().tensors
    if not ranks.rank:
        torch.save({"gradients": gradients, "metrics": metrics, "weights": weights, "published": published}, directory / f"{name}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
