"""The value head: the return to be expected from the state that a turn begins in.

It is for learner.algorithm gae: a linear head on the policy's last hidden state at the end of the
prompt, where the policy begins to decide. It has an optimizer of its own, and its gradient ends at
the head. So the policy is never bent towards predicting values, at the price of values that are no
better than what the policy's features tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from learner.data.batching import pack_by_length
from learner.data.rows import merge_turns
from learner.data.samples import TrainingSample
from learner.model.sharding import Policy
from learner.ranks import Ranks

STEPS = 16
"""Optimizer steps an update, each on all its turns.

The head is a few hundred weights, so they take milliseconds.
"""


class Critic:
    """V(state) = w h + b, zero at the start."""

    def __init__(
        self, hidden: int, learning_rate: float, device: torch.device | str = "cpu"
    ) -> None:
        self.head = torch.nn.Linear(hidden, 1).to(device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=learning_rate, weight_decay=0.0
        )

    def annotate(
        self, policy: Policy, samples: Sequence[TrainingSample], token_budget: int, ranks: Ranks
    ) -> list[TrainingSample]:
        """Add to samples the value of the state they begin in, and the features it comes from."""
        rows = merge_turns(samples)
        packs = list(
            pack_by_length(range(len(rows)), lambda i: len(rows[i][-1].prompt), token_budget)
        )
        computed = []
        for indices, counts in ranks.shard(packs):
            prompts = [[sample.prompt for sample in rows[i]] for i in indices]
            features = policy.state_features(prompts).cpu().numpy()
            if counts:
                computed.append(features)
        for indices, features in zip(packs, ranks.gather(computed, len(packs)), strict=True):
            known = zip(features, self._values(features), strict=True)
            for i in indices:
                rows[i] = [_with_features(sample, *next(known)) for sample in rows[i]]
        return list(chain(*rows))

    def _values(self, features: np.ndarray) -> list[float]:
        with torch.no_grad():
            values = self.head(torch.from_numpy(features).to(self.head.weight.device))
        return values.squeeze(-1).tolist()

    @staticmethod
    def _features_of(samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """The features of all samples; ValueError for one that was not annotated."""
        features = [sample.features for sample in samples if sample.features is not None]
        if len(features) != len(samples):
            raise ValueError("a sample without features: annotate it first")
        return features

    def fit(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """Fit the samples' targets by squared error; return how far off the values were before.

        Names of the figures: telemetry/metrics_schema.py.
        """
        device = self.head.weight.device
        features = torch.from_numpy(np.stack(self._features_of(samples))).to(device)
        targets = torch.tensor(
            [sample.target for sample in samples], dtype=torch.float32, device=device
        )
        error = targets.cpu().numpy() - np.array([sample.value for sample in samples])
        variance = float(targets.var(correction=0))
        for _ in range(STEPS):
            self.optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(self.head(features).squeeze(-1), targets).backward()
            self.optimizer.step()
        metrics = {"value_loss": float(np.square(error).mean())}
        if variance:
            metrics["explained_variance"] = 1 - float(error.var()) / variance
        return metrics

    def state(self) -> dict:
        """Return what a checkpoint keeps of the head."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}

    def load(self, state: dict) -> None:
        """Take over what `state` returned; the step size stays that of now."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(
            {
                "state": state["optimizer"],
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )


def _with_features(sample: TrainingSample, features: np.ndarray, value: float) -> TrainingSample:
    return replace(sample, features=features, value=value)
