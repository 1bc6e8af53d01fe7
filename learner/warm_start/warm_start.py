"""Warm start: imitate the environment's expert (rejection-sampling fine-tuning on the episodes it
won), before RL."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from config import Config, WarmStartSection
from learner.data.batching import microbatches
from learner.data.samples import TrainingSample
from learner.model.policy import log_probs
from learner.warm_start.demonstrations import TurnTokenizer, demonstrations
from learner.warm_start.muon import Muon
from protocol.machine import available_cores

ReportProgress = Callable[[str, float | None, float | None], None]
"""Tells what is under way, how far it is and of how much (None: unknown); may raise Stopped."""

WARM_UP = 0.05
"""Share of the steps over which the step size rises."""
FINAL = 0.02
"""Share of the step size that is left at the end."""
MICROBATCH_TOKENS = 2048
"""Small enough for the activations of a small model to stay in the processor's cache."""
GRADIENT_CLIP = 1.0


def warm_start(
    model: PreTrainedModel, turn_tokenizer: TurnTokenizer, config: Config, report: ReportProgress
) -> dict[str, float]:
    """Train `model` in place; returns what it took and came to: the loss (nats a token) is a mean
    over the last tenth."""
    settings = config.warm_start
    started = time.monotonic()
    samples: list[TrainingSample] = []
    for number, turns in enumerate(demonstrations(config, settings.episodes)):
        samples += turn_tokenizer.samples(turns)
        report("demonstrations", number, settings.episodes)
    if not samples:
        raise ValueError(
            "the expert won no episode to learn from: check env.* and warm_start.episodes"
        )
    rng = np.random.default_rng(config.run.seed)
    batches = list(token_batches(samples, settings.batch_tokens, settings.epochs, rng))
    optimizers = make_optimizers(model, settings)
    losses = []
    torch.set_num_threads(settings.threads or available_cores())
    for step, batch in enumerate(batches):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, len(batches))
        losses.append(
            imitation_step(
                model, [optimizer for optimizer, _ in optimizers], batch, config.learner.precision
            )
        )
        report("warm start", step + 1, len(batches))
    return {
        "episodes": float(settings.episodes),
        "turns": float(len(samples)),
        "steps": float(len(batches)),
        "tokens": float(sum(sample.length for batch in batches for sample in batch)),
        "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "seconds": time.monotonic() - started,
    }


def make_optimizers(
    model: PreTrainedModel, settings: WarmStartSection
) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW; for the matrices inside the layers Muon, if it has a step size.

    Each with its peak step size.
    """
    inner = (
        [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
        if settings.muon_learning_rate
        else []
    )
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(
        outer, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    muon = (
        [(Muon(inner, lr=settings.muon_learning_rate), settings.muon_learning_rate)]
        if inner
        else []
    )
    return [*muon, (adam, settings.learning_rate)]


def schedule(step: int, steps: int) -> float:
    """Share of the peak step size at `step` of `steps`: linear warm-up, then a cosine down to
    FINAL."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    through = (step - rising) / max(1, steps - rising)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * through))


def token_batches(
    samples: Sequence[TrainingSample], batch_tokens: int, epochs: float, rng: np.random.Generator
) -> Iterator[list[TrainingSample]]:
    """Random batches of about `batch_tokens` prompt and response tokens; every epoch has a new
    order, the last may be cut short."""
    left = epochs * sum(sample.length for sample in samples)
    batch: list[TrainingSample] = []
    size = 0
    while left > 0:
        for index in rng.permutation(len(samples)):
            batch.append(samples[index])
            size += samples[index].length
            left -= samples[index].length
            if size >= batch_tokens:
                yield batch
                batch = []
                size = 0
            if left <= 0:
                break
    if batch:
        yield batch


def imitation_step(
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    samples: Sequence[TrainingSample],
    precision: str = "float32",
) -> float:
    """One step on the mean cross-entropy of the response tokens, in nats, which is returned as it
    was before the step."""
    denominator = sum(sample.trained_tokens for sample in samples)
    total = 0.0
    for batch in microbatches(samples, MICROBATCH_TOKENS):
        log_pi, _ = log_probs(model, batch, temperature=1.0, precision=precision)
        loss = -log_pi.sum() / denominator
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total
