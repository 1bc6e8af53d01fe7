"""One update of the policy: samples in, a few optimizer steps, and what they did."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import GaeAlgorithm, LearnerSection
from learner.data.batching import (
    MicroBatch,
    collate,
    microbatches,
    minibatches,
    pack_rows,
)
from learner.data.rows import Row, merge_turns
from learner.data.samples import TrainingSample
from learner.losses import LOSSES, NEEDS_OLD_LOG_PROBS, Tokens
from learner.losses.diagnostics import divergence, token_ages
from learner.losses.kl import reference_kl
from learner.model.critic import Critic
from learner.model.lora import add_adapters, load_adapters, reset_adapters
from learner.model.sharding import Policy, copy_into
from learner.model.slices import full_tensor
from learner.ranks import Ranks

TOKEN_STATS = ("log_pi", "log_mu", "age", "entropy", "clipped", "kept", "kl_reference", "loss")
"""Names of what is remembered of each trained token."""


@dataclass
class _Step:
    """Observations of one optimizer step: arrays over the trained tokens computed [N]."""

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
    grad_norm: float = field(default=0.0, init=False)  # 0 before the step

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.grad_norm))


class Updater:
    """A model in training, its optimizer, and the random state that shuffles samples.

    Its weights are float32; adapters are put into it if settings ask for them. With a group of
    ranks, models may be skeletons (learner/model/loading.py), which are filled here.
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
        """`max_tokens`: response budget of a turn.

        `reference`: the policy that `kl_coef` holds the model to; by default the model as it is
        now. `adapters`: LoRA's, of a checkpoint whose weights the model has.
        """
        self.model = model
        self.ranks = ranks or Ranks()
        self._settings = settings
        self.reference: PreTrainedModel | None = None
        if settings.kl_coef:
            self.reference = (reference or copy.deepcopy(model)).requires_grad_(False)
        if settings.lora_rank:
            add_adapters(model, settings.lora_rank, settings.lora_alpha)
        self.policy = self._share(model)
        if adapters:
            load_adapters(model, adapters)
        else:
            reset_adapters(model, seed)
        self._reference_policy: Policy | None = None
        if self.reference is not None:
            self._reference_policy = self._share(self.reference)
        self.rng = np.random.default_rng(seed)
        self.optimizer = _build_optimizer(model, settings)
        self.step_scale = 1.0
        """Factor of the step size that the settings ask for."""
        self.critic = _build_critic(model, settings)
        self._temperature = temperature
        self._max_tokens = max_tokens

    def _share(self, model: PreTrainedModel) -> Policy:
        """Share a model between the ranks."""
        s = self._settings
        return Policy(model, self.ranks, s.precision, compiled=s.compile)

    def refresh_reference(self) -> None:
        """Make the policy as it is now the reference."""
        if self.reference is not None:
            copy_into(self.reference, self.model)

    def annotate(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """Add to samples what policy and value head, as they are now, know of them.

        That is as much as the settings ask for.
        """
        if self._settings.loss.type in NEEDS_OLD_LOG_PROBS:
            samples = self._with_old_log_probs(samples)
        if self.critic is not None:
            budget = self._settings.microbatch_tokens
            samples = self.critic.annotate(self.policy, samples, budget, self.ranks)
        return list(samples)

    def update(self, samples: Sequence[TrainingSample], progress: float = 0.0) -> dict[str, float]:
        """Make `minibatches` optimizer steps over annotated samples, each seen once.

        Returns the update's figures (telemetry/metrics_schema.py). `progress` is the share of the
        training that is over, which the step size depends on.

        A step whose gradient is not finite is left out and counted (`skipped_steps`): the weights
        stay as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.step_scale * learning_rate_at(self._settings, progress)
        trainable = [sample for sample in samples if sample.trained_tokens]
        rows = merge_turns(trainable)
        batches = minibatches(rows, self._settings.minibatches, self.rng)
        steps = [self._step(batch) for batch in batches]
        metrics = _sample_metrics(trainable) | self._step_metrics(steps)
        metrics["turns_per_row"] = len(trainable) / max(1, len(rows))
        if self.critic is not None and samples:
            metrics |= self.critic.fit(samples)
        return metrics | self._token_metrics(steps)

    # --- one optimizer step

    def _step(self, rows: Sequence[Row]) -> _Step:
        """Make one optimizer step on a mini-batch.

        Its loss is one sum over one denominator, whatever the micro-batches are.
        """
        s = self._settings
        everything = s.kl_coef > 0 or s.entropy_coef > 0
        batches = list(
            microbatches(
                rows,
                s.microbatch_tokens,
                everything=everything,
                shares_prompts=self.policy.shares_prompts,
            )
        )
        by_batch = self._backward(batches)
        arrays = {name: _concatenate(name, by_batch) for name in TOKEN_STATS}
        masked = int((arrays["kept"] == 0).sum())
        masked_turns = sum(int(values["masked_turns"]) for values in by_batch)
        denominator = self._denominator(list(chain(*rows)), masked, masked_turns)
        step = _Step(
            loss=float(arrays.pop("loss").sum()) / denominator,
            padding=sum(batch.padding for batch in batches),
            columns=sum(len(batch.prefix) + batch.tokens.numel() for batch in batches),
            **arrays,
        )
        if step.columns:
            step.grad_norm = self._apply_gradient(denominator)
        return step

    def _backward(self, batches: Sequence[MicroBatch]) -> list[dict[str, np.ndarray]]:
        """Add up the gradient of the micro-batches' losses; return what they saw, of all ranks."""
        computed = []
        self.optimizer.zero_grad(set_to_none=True)
        for batch, counts in self.ranks.shard(batches):
            values = self._losses(batch)
            (values["loss"].sum() * counts).backward()
            if counts:
                computed.append({name: value.detach() for name, value in values.items()})
        # to the host once all are under way
        arrays = [
            {name: value.cpu().numpy() for name, value in values.items()} for values in computed
        ]
        return self.ranks.gather(arrays, len(batches))

    def _apply_gradient(self, denominator: float) -> float:
        """Step along the gradient of the summed losses, unless it is not finite; its norm."""
        parameters = list(self.model.parameters())
        for parameter in parameters:
            if parameter.grad is not None:
                # sharding takes the mean over the ranks
                parameter.grad.mul_(self.ranks.size / denominator)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.gradient_clip)
        grad_norm = float(full_tensor(norm))
        if np.isfinite(grad_norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _losses(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Compute TOKEN_STATS of each trained token [N]; `loss` is what is summed.

        `masked_turns` is the number of turns of which no token is kept. What a loss masks has no
        policy gradient; `kl_coef` and `entropy_coef` hold for it all the same: they are about all
        states.
        """
        s = self._settings
        log_pi, entropy = self.policy(batch, self._temperature, entropy_gradient=s.entropy_coef > 0)
        tokens = _tokens_of(batch, log_pi)
        token_loss = LOSSES[s.loss.type](tokens, s.loss)
        kl = self._reference_kl(batch, tokens)
        regularizer = s.kl_coef * kl
        if s.entropy_coef:
            regularizer = regularizer - s.entropy_coef * entropy
        kept = token_loss.kept.to(log_pi.dtype)
        kept_by_turn = torch.bincount(tokens.turn, weights=kept, minlength=tokens.turns)
        loss = torch.where(token_loss.kept, token_loss.loss, 0.0)
        if s.loss_reduction == "turn":
            loss = loss / kept_by_turn.clamp(min=1)[tokens.turn]
            regularizer = regularizer / tokens.sum_by_turn(torch.ones_like(log_pi))
        return {
            "log_pi": log_pi,
            "log_mu": tokens.log_mu,
            "age": batch.age,
            "entropy": entropy,
            "clipped": token_loss.clipped,
            "kept": token_loss.kept,
            "kl_reference": kl,
            "loss": loss + regularizer,
            "masked_turns": (kept_by_turn == 0).sum(),
        }

    def _reference_kl(self, batch: MicroBatch, tokens: Tokens) -> Tensor:
        """Return each token's divergence from the reference [N]; 0 without one."""
        if self._reference_policy is None:
            return torch.zeros_like(tokens.log_pi)
        with torch.no_grad():
            log_reference, _ = self._reference_policy(batch, self._temperature)
        return reference_kl(tokens.log_pi, tokens.log_mu, log_reference)

    def _denominator(
        self, samples: Sequence[TrainingSample], masked: int, masked_turns: int
    ) -> float:
        """Return what the mini-batch's summed loss is divided by.

        Tokens, and whole turns, that a loss has left out do not count; those whose gradient is 0
        do.
        """
        match self._settings.loss_reduction:
            case "token":
                return max(1, sum(sample.trained_tokens for sample in samples) - masked)
            case "turn":
                return max(1, len(samples) - masked_turns)
            case _:
                return len(samples) * self._max_tokens

    def _with_old_log_probs(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """Add the log-probs of the policy as it is before the update."""
        rows = merge_turns(samples)
        budget = self._settings.microbatch_tokens
        packs = list(pack_rows(rows, budget, shares_prompts=self.policy.shares_prompts))
        computed = []
        for pack, counts in self.ranks.shard(packs):
            batch = collate([rows[i] for i in pack.indices], pack.shared)
            with torch.no_grad():
                log_pi, _ = self.policy(batch, self._temperature)
            if counts:
                computed.append(log_pi.cpu().numpy())
        for pack, log_pi in zip(packs, self.ranks.gather(computed, len(packs)), strict=True):
            values = iter(np.split(log_pi, _ends_of_turns([rows[i] for i in pack.indices])))
            for i in pack.indices:
                rows[i] = [_with_log_prox(sample, next(values)) for sample in rows[i]]
        return list(chain(*rows))

    # --- figures

    def _step_metrics(self, steps: Sequence[_Step]) -> dict[str, float]:
        computed = sum(step.columns for step in steps)
        return {
            "padding_share": sum(step.padding for step in steps) / max(1, computed),
            "optimizer_steps": float(sum(step.columns > 0 and step.is_finite for step in steps)),
            "skipped_steps": float(sum(not step.is_finite for step in steps)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": _mean([step.loss for step in steps]),
            "grad_norm": _mean([step.grad_norm for step in steps]),
        }

    def _token_metrics(self, steps: Sequence[_Step]) -> dict[str, float]:
        """Measure the trained tokens that were computed; nothing without any.

        The divergence from the behaviour policy is measured on the first mini-batch, before any
        step: later ones would show how far the update itself has gone, not how old the data is.
        """
        observed = [step for step in steps if len(step.log_pi)]
        if not observed:
            return {}
        metrics = {
            "entropy": _mean_of_all([step.entropy for step in observed]),
            "clip_fraction": _mean_of_all([step.clipped for step in observed]),
            "masked_share": 1 - _mean_of_all([step.kept for step in observed]),
        }
        if self.reference is not None:
            metrics["kl_reference"] = _mean_of_all([step.kl_reference for step in observed])
        first = observed[0]
        return metrics | divergence(first.log_pi, first.log_mu, first.age)


def training_fraction(*limits: tuple[float, float]) -> float:
    """Return the share of the training that is over.

    It is the largest (so much, of so much) among its updates, its tokens and its time.
    """
    return max(_fraction(done, total) for done, total in limits)


def _fraction(done: float, total: float) -> float:
    if total <= 0:
        return 1.0
    return done / total


def learning_rate_at(settings: LearnerSection, progress: float) -> float:
    """Return AdamW's step size when the share `progress` of the training is over.

    It is constant, then falls linearly to 0 over the last `lr_decay_fraction` of the training.
    """
    if not settings.lr_decay_fraction:
        return settings.learning_rate
    remaining = max(0.0, 1.0 - progress)
    return settings.learning_rate * min(1.0, remaining / settings.lr_decay_fraction)


def _build_optimizer(model: PreTrainedModel, settings: LearnerSection) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        fused=True,
    )


def _build_critic(model: PreTrainedModel, settings: LearnerSection) -> Critic | None:
    """Build a value head, if the advantage estimator needs one."""
    algorithm = settings.algorithm
    if not isinstance(algorithm, GaeAlgorithm):
        return None
    device = next(model.parameters()).device
    return Critic(model.config.hidden_size, algorithm.value_learning_rate, device)


def _tokens_of(batch: MicroBatch, log_pi: Tensor) -> Tokens:
    """Put the tokens of a micro-batch on the device of their log-probs."""
    device = log_pi.device
    log_prox = log_pi.detach()
    if batch.log_prox is not None:
        log_prox = batch.log_prox.to(device)
    return Tokens(
        log_pi,
        batch.log_mu.to(device),
        log_prox,
        batch.advantage.to(device),
        batch.turn.to(device),
        turns=batch.turns,
    )


def _ends_of_turns(rows: Sequence[Row]) -> np.ndarray:
    """Return where the trained tokens of each turn but the last one end."""
    return np.cumsum([sample.trained_tokens for sample in chain(*rows)])[:-1]


def _with_log_prox(sample: TrainingSample, trained: np.ndarray) -> TrainingSample:
    """Add log-probs of the trained tokens."""
    log_prox = np.zeros(len(sample.mask), dtype=np.float32)
    log_prox[sample.mask] = trained
    return replace(sample, log_prox=log_prox)


def _sample_metrics(trainable: Sequence[TrainingSample]) -> dict[str, float]:
    """Measure the samples that have trained tokens."""
    computed = sum(sample.needs_compute for sample in trainable)
    metrics = {
        "trained_tokens": float(sum(sample.trained_tokens for sample in trainable)),
        "computed_turns_share": computed / max(1, len(trainable)),
        "advantage_std": 0.0,
    }
    if trainable:
        metrics["advantage_std"] = float(np.std([sample.advantage for sample in trainable]))
        metrics |= token_ages(np.concatenate([sample.age[sample.mask] for sample in trainable]))
    return metrics


def _concatenate(name: str, by_batch: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    if not by_batch:
        return np.zeros(0)
    return np.concatenate([values[name] for values in by_batch])


def _mean(values: Sequence[float]) -> float:
    """Return the mean; 0 of nothing."""
    if not values:
        return 0.0
    return float(np.mean(values))


def _mean_of_all(arrays: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(arrays).mean())
