"""One update of the policy: samples in, a few optimizer steps, and what they did."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import LearnerSection
from learner.advantages import NEEDS_CRITIC
from learner.data.batching import MicroBatch, collate, microbatches, minibatches, pack_by_length
from learner.data.samples import TrainingSample
from learner.losses import LOSSES, NEEDS_OLD_LOG_PROBS, Tokens
from learner.losses.diagnostics import divergence, token_ages
from learner.losses.kl import reference_kl
from learner.model.critic import Critic
from learner.model.lora import add_adapters, load_adapters
from learner.model.sharding import Policy, full_state_dict, set_weights, whole
from learner.ranks import Ranks

TOKEN_STATS = ("log_pi", "log_mu", "age", "entropy", "clipped", "kept", "kl_reference", "loss")
"""What is kept of each trained token."""


@dataclass
class _Step:
    """What was seen during one optimizer step.

    The arrays are over the trained tokens that were computed [N].
    """

    log_pi: np.ndarray
    log_mu: np.ndarray
    age: np.ndarray
    entropy: np.ndarray
    clipped: np.ndarray
    kept: np.ndarray
    kl_reference: np.ndarray
    loss: float
    padding: int
    columns: int  # that went through the model, padding included
    grad_norm: float = 0.0

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.grad_norm))


class Updater:
    """A model (float32 weights; adapters are put into it if settings ask for them), its optimizer,
    and the random state that shuffles samples.

    `max_tokens`: response budget of a turn. `reference`: the policy that `kl` holds the model to;
    by default the model as it is now. `adapters`: LoRA's, of a checkpoint whose weights the model
    has.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: LearnerSection,
        temperature: float,
        seed: int,
        *,
        max_tokens: int = 64,
        reference: PreTrainedModel | None = None,
        adapters: dict[str, Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.reference = (
            (reference or copy.deepcopy(model)).requires_grad_(False) if settings.kl_coef else None
        )
        self.ranks = ranks or Ranks()
        if settings.lora_rank:
            add_adapters(model, settings.lora_rank, settings.lora_alpha, seed)
            if adapters:
                load_adapters(model, adapters)
        self._policy = Policy(model, self.ranks, settings.precision)
        self._reference_policy = (
            Policy(self.reference, self.ranks, settings.precision)
            if self.reference is not None
            else None
        )
        self.rng = np.random.default_rng(seed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.999),
            fused=True,
        )
        device = next(model.parameters()).device
        valued = settings.algorithm.type in NEEDS_CRITIC
        self.step_scale = 1.0
        """Times the step size that the settings ask for."""
        self.critic = (
            Critic(model.config.hidden_size, settings.algorithm.value_learning_rate, device)
            if valued
            else None
        )
        self._settings = settings
        self._temperature = temperature
        self._max_tokens = max_tokens

    def refresh_reference(self) -> None:
        """The policy as it is now becomes the reference."""
        if self.reference is not None:
            set_weights(self.reference, dict(full_state_dict(self.model)))

    def annotate(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with what the policy as it is now, and the value head, know of them, as far
        as the settings ask for it."""
        if self._settings.loss.type in NEEDS_OLD_LOG_PROBS:
            samples = self._with_proximal(samples)
        if self.critic is not None:
            samples = self.critic.annotate(
                self._policy, samples, self._settings.microbatch_tokens, self.ranks
            )
        return list(samples)

    def update(self, samples: Sequence[TrainingSample], progress: float = 0.0) -> dict[str, float]:
        """`minibatches` optimizer steps over the samples, which were judged, each seen once; the
        update's numbers (telemetry/metrics_schema.py).

        `progress` is the share of the training that is over, which the step size depends on.

        A step whose gradient is not finite is left out and counted (`skipped_steps`): the weights
        stay as they were. The divergence from the behaviour policy is measured on the first
        mini-batch, before any step: later ones would show how far the update itself has gone, not
        how old the data is.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.step_scale * learning_rate_at(self._settings, progress)
        trainable = [sample for sample in samples if sample.trained_tokens]
        steps = [
            self._step(part)
            for part in minibatches(trainable, self._settings.minibatches, self.rng)
        ]
        advantages = np.array([sample.advantage for sample in trainable])
        trained = sum(sample.trained_tokens for sample in trainable)
        computed = sum(step.columns for step in steps)
        metrics = {
            "trained_tokens": float(trained),
            "computed_turns_share": sum(sample.needs_compute for sample in trainable)
            / max(1, len(trainable)),
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
        if self.critic is not None and samples:
            metrics |= self.critic.fit(samples)
        observed = [step for step in steps if len(step.log_pi)]
        if observed:
            metrics["entropy"] = float(np.concatenate([step.entropy for step in observed]).mean())
            metrics["clip_fraction"] = float(
                np.concatenate([step.clipped for step in observed]).mean()
            )
            metrics["masked_share"] = 1 - float(
                np.concatenate([step.kept for step in observed]).mean()
            )
            if self.reference is not None:
                metrics["kl_reference"] = float(
                    np.concatenate([step.kl_reference for step in observed]).mean()
                )
            first = observed[0]
            metrics |= divergence(first.log_pi, first.log_mu, first.age)
        return metrics

    def _with_proximal(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with the log-probs of the policy as it is before the update."""
        parts = list(
            pack_by_length(
                range(len(samples)), lambda i: samples[i].length, self._settings.microbatch_tokens
            )
        )
        computed = []
        for which, counts in self.ranks.shard(parts):
            with torch.no_grad():
                log_pi, _ = self._policy(collate([samples[i] for i in which]), self._temperature)
            computed += [log_pi.cpu().numpy()] * counts
        out = list(samples)
        for which, log_pi in zip(parts, self.ranks.gather(computed, len(parts)), strict=True):
            ends = np.cumsum([samples[i].trained_tokens for i in which])[:-1]
            for i, values in zip(which, np.split(log_pi, ends), strict=True):
                log_prox = np.zeros(len(samples[i].mask), dtype=np.float32)
                log_prox[samples[i].mask] = values
                out[i] = replace(samples[i], log_prox=log_prox)
        return out

    def _step(self, samples: Sequence[TrainingSample]) -> _Step:
        """One optimizer step on a mini-batch.

        Its loss is one sum over one denominator, whatever the micro-batches are.
        """
        everything = self._settings.kl_coef > 0 or self._settings.entropy_coef > 0
        batches = list(
            microbatches(samples, self._settings.microbatch_tokens, everything=everything)
        )
        computed = []
        self.optimizer.zero_grad(set_to_none=True)
        for batch, counts in self.ranks.shard(batches):
            values = self._losses(batch)
            (values["loss"].sum() * counts).backward()
            computed += [
                {name: value.detach() for name, value in values.items()}
            ] * counts  # to the host once all are under way
        arrays_of = [
            {name: value.cpu().numpy() for name, value in values.items()} for values in computed
        ]
        computed = self.ranks.gather(arrays_of, len(batches))
        arrays = {
            name: np.concatenate([values[name] for values in computed] or [np.zeros(0)])
            for name in TOKEN_STATS
        }
        masked = int((arrays["kept"] == 0).sum())
        masked_turns = sum(int(values["masked_turns"]) for values in computed)
        denominator = self._denominator(samples, masked, masked_turns)
        loss = float(arrays.pop("loss").sum()) / denominator
        padding = sum(batch.padding for batch in batches)
        columns = sum(batch.tokens.numel() for batch in batches)
        step = _Step(**arrays, loss=loss, padding=padding, columns=columns)
        if columns:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(
                        self.ranks.size / denominator
                    )  # sharding takes the mean over the ranks
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self._settings.gradient_clip
            )
            step.grad_norm = float(whole(norm))
            if step.finite:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return step

    def _losses(self, batch: MicroBatch) -> dict[str, Tensor]:
        """What is kept of each trained token [N]; `loss` is what is summed.

        And the number of `masked_turns`, of which no token is kept.

        What a correction masks has no policy gradient; `kl` and `entropy` hold for it all the same:
        they are about all states.
        """
        s = self._settings
        log_pi, entropy = self._policy(
            batch, self._temperature, entropy_gradient=s.entropy_coef > 0
        )
        to = log_pi.device
        turn = batch.rows.to(to)
        log_mu = batch.log_mu.to(to)
        advantage = batch.advantage.to(to)
        log_prox = log_pi.detach() if batch.log_prox is None else batch.log_prox.to(to)
        tokens = Tokens(log_pi, log_mu, log_prox, advantage, turn, turns=len(batch.tokens))
        corrected = LOSSES[s.loss.type](tokens, s.loss)
        regularizer = torch.zeros_like(log_pi)
        kl = torch.zeros_like(log_pi)
        if self._reference_policy is not None:
            with torch.no_grad():
                log_reference, _ = self._reference_policy(batch, self._temperature)
            kl = reference_kl(log_pi, log_mu, log_reference)
            regularizer = s.kl_coef * kl
        if s.entropy_coef:
            regularizer = regularizer - s.entropy_coef * entropy
        kept_of_turn = torch.bincount(
            turn, weights=corrected.kept.to(log_pi.dtype), minlength=tokens.turns
        )
        loss = torch.where(corrected.kept, corrected.loss, 0.0)
        if s.loss_reduction == "turn":
            loss = loss / kept_of_turn.clamp(min=1)[turn]
            regularizer = regularizer / tokens.sum_by_turn(torch.ones_like(log_pi))
        return {
            "log_pi": log_pi,
            "log_mu": log_mu,
            "age": batch.age,
            "entropy": entropy,
            "clipped": corrected.clipped,
            "kept": corrected.kept,
            "kl_reference": kl,
            "loss": loss + regularizer,
            "masked_turns": (kept_of_turn == 0).sum(),
        }

    def _denominator(
        self, samples: Sequence[TrainingSample], masked: int, masked_turns: int
    ) -> float:
        """Of the mini-batch's loss.

        Tokens, and whole turns, that a correction has left out do not count, those whose gradient
        is 0 do.
        """
        match self._settings.loss_reduction:
            case "token":
                return max(1, sum(sample.trained_tokens for sample in samples) - masked)
            case "turn":
                return max(1, len(samples) - masked_turns)
            case _:
                return len(samples) * self._max_tokens


def training_fraction(*limits: tuple[float, float]) -> float:
    """Share of the training that is over: the largest (so much, of so much) among its updates, its
    tokens and its time."""
    return max(done / of if of > 0 else 1.0 for done, of in limits)


def learning_rate_at(settings: LearnerSection, progress: float) -> float:
    """AdamW's step size when the share `progress` of the training is over: constant, then linearly
    to 0 over the last `decay` of it."""
    left = max(0.0, 1.0 - progress)
    return settings.learning_rate * (
        min(1.0, left / settings.lr_decay_fraction) if settings.lr_decay_fraction else 1.0
    )
