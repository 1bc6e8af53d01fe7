"""One update of the policy: samples in, a few optimizer steps, and what they did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import LearnerSection
from learner.batching import Sample, microbatches, minibatches
from learner.corrections import CORRECTIONS
from learner.corrections.diagnostics import divergence, token_ages
from learner.policy import log_probs


@dataclass
class _Step:
    """What was seen during one optimizer step. The arrays are over the trained tokens that were computed [N]."""

    log_pi: np.ndarray
    log_mu: np.ndarray
    age: np.ndarray
    entropy: np.ndarray
    clipped: np.ndarray
    loss: float
    padding: int
    columns: int  # that went through the model, padding included
    grad_norm: float = 0.0

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.grad_norm))


class Updater:
    """A model (float32 weights), its optimizer, and the random state that shuffles samples."""

    def __init__(self, model: PreTrainedModel, settings: LearnerSection, temperature: float, seed: int) -> None:
        self.model = model
        self.rng = np.random.default_rng(seed)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.999), fused=True
        )
        self._settings = settings
        self._temperature = temperature

    def update(self, samples: Sequence[Sample], progress: float = 0.0) -> dict[str, float]:
        """`minibatches` optimizer steps over the samples, each seen once; the update's numbers (telemetry/fields.py).

        `progress` is the share of the training that is over, which the step size depends on.

        A step whose gradient is not finite is left out and counted (`skipped_steps`): the weights stay as they were. The
        divergence from the behaviour policy is measured on the first mini-batch, before any step: later ones would show
        how far the update itself has gone, not how old the data is.
        """
        started = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = step_size(self._settings, progress)
        trainable = [sample for sample in samples if sample.trained_tokens]
        steps = [self._step(part) for part in minibatches(trainable, self._settings.minibatches, self.rng)]
        advantages = np.array([sample.advantage for sample in trainable])
        trained = sum(sample.trained_tokens for sample in trainable)
        computed = sum(step.columns for step in steps)
        metrics = {
            "trained_tokens": float(trained),
            "computed_turns_share": sum(sample.needs_compute for sample in trainable) / max(1, len(trainable)),
            "padding_share": sum(step.padding for step in steps) / max(1, computed),
            "optimizer_steps": float(sum(step.columns > 0 and step.finite for step in steps)),
            "skipped_steps": float(sum(not step.finite for step in steps)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "advantage_std": float(advantages.std()) if len(advantages) else 0.0,
            "loss": float(np.mean([step.loss for step in steps])) if steps else 0.0,
            "grad_norm": float(np.mean([step.grad_norm for step in steps])) if steps else 0.0,
        }
        if trainable:
            metrics |= token_ages(np.concatenate([sample.age[sample.mask] for sample in trainable]))
        observed = [step for step in steps if len(step.log_pi)]
        if observed:
            metrics["entropy"] = float(np.concatenate([step.entropy for step in observed]).mean())
            metrics["clip_fraction"] = float(np.concatenate([step.clipped for step in observed]).mean())
            first = observed[0]
            metrics |= divergence(first.log_pi, first.log_mu, first.age)
        metrics["seconds_train"] = time.monotonic() - started
        return metrics

    def _step(self, samples: Sequence[Sample]) -> _Step:
        """One optimizer step: the mean over all trained tokens of the mini-batch, whatever the micro-batches are."""
        denominator = sum(sample.trained_tokens for sample in samples)
        correction = CORRECTIONS[self._settings.correction]
        seen: dict[str, list[Tensor]] = {name: [] for name in ("log_pi", "log_mu", "age", "entropy", "clipped", "loss")}
        padding = columns = 0
        self.optimizer.zero_grad(set_to_none=True)
        for batch in microbatches(samples, self._settings.microbatch_tokens):
            log_pi, entropy = log_probs(self.model, batch, self._temperature)
            log_mu, advantage = batch.log_mu.to(log_pi.device), batch.advantage.to(log_pi.device)
            losses, clipped = correction(log_pi, log_mu, advantage, self._settings)
            (losses.sum() / denominator).backward()
            values = {"log_pi": log_pi, "log_mu": log_mu, "age": batch.age, "entropy": entropy, "clipped": clipped, "loss": losses}
            for name, value in values.items():
                seen[name].append(value.detach())
            padding, columns = padding + batch.padding, columns + batch.tokens.numel()
        arrays = {name: torch.cat(parts).cpu().numpy() if parts else np.zeros(0) for name, parts in seen.items()}
        loss = float(arrays.pop("loss").sum()) / denominator
        step = _Step(**arrays, loss=loss, padding=padding, columns=columns)
        if columns:
            step.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.gradient_clip))
            if step.finite:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return step


def share_over(*limits: tuple[float, float]) -> float:
    """Share of the training that is over: the largest (so much, of so much) among its updates, its tokens and its time."""
    return max(done / of if of > 0 else 1.0 for done, of in limits)


def step_size(settings: LearnerSection, progress: float) -> float:
    """AdamW's step size when the share `progress` of the training is over: constant, then linearly to 0 over the last `decay` of it."""
    left = max(0.0, 1.0 - progress)
    return settings.learning_rate * (min(1.0, left / settings.decay) if settings.decay else 1.0)
