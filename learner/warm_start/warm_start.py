"""Warm start: imitate the environment's expert, or conversations of a file, before RL.

Of the expert it is rejection-sampling fine-tuning: only the episodes that it won are imitated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import Config, WarmStartSection
from config.options import this_command
from envs.registry import make_environment
from learner.data.batching import microbatches
from learner.data.rows import Row, merge_turns, row_length
from learner.data.samples import TrainingSample
from learner.model.policy import log_probs
from learner.warm_start.conversation_file import read_conversations
from learner.warm_start.demonstrations import (
    NoDemonstrations,
    TurnTokenizer,
    play_tasks,
    tokenize_conversation,
)
from learner.warm_start.muon import Muon
from protocol.machine import available_cores


class ReportProgress(Protocol):
    """Reports the phase, how far it is and of how much (None: unknown); may raise Stopped."""

    def __call__(
        self,
        phase: str,
        done: float | None = None,
        total: float | None = None,
        /,
        **figures: float,
    ) -> None:
        """`figures`: what the phase has come to, by name."""
        ...


WARM_UP_FRACTION = 0.05
"""Share of the steps over which the learning rate rises."""
FINAL_FRACTION = 0.02
"""Share of the learning rate that is left at the end."""
MICROBATCH_TOKENS = 2048
"""Tokens of a micro-batch: few, so that a small model's activations stay in the CPU's cache."""
GRADIENT_CLIP = 1.0
"""Norm that gradients are clipped to."""


def warm_start(
    model: PreTrainedModel, turn_tokenizer: TurnTokenizer, config: Config, report: ReportProgress
) -> dict[str, float]:
    """Train `model` in place; return what it took and what it came to.

    The loss, in nats a token, is a mean over the last tenth of the steps.
    """
    settings = config.warm_start
    started = time.monotonic()
    samples: list[TrainingSample] = []
    won = 0
    if settings.episodes:
        samples, won = _tokenize_demonstrations(turn_tokenizer, config, report)
    if settings.data:
        samples += _tokenize_file(turn_tokenizer, config, report)
    rng = np.random.default_rng(config.run.seed)
    batches = list(draw_batches(merge_turns(samples), settings.batch_tokens, settings.epochs, rng))
    optimizers = make_optimizers(model, settings)
    peaks = [optimizer.defaults["lr"] for optimizer in optimizers]
    losses = []
    torch.set_num_threads(settings.threads or available_cores())
    for step, batch in enumerate(batches):
        fraction = learning_rate_fraction(step, len(batches))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * fraction
        losses.append(imitate_batch(model, optimizers, batch, config.learner.precision))
        report("warm start", step + 1, len(batches), loss=losses[-1])
    return {
        "episodes": float(settings.episodes),
        "won": float(won),
        "turns": float(len(samples)),  # of the file's conversations, too
        "steps": float(len(batches)),
        "tokens": float(sum(row_length(row) for batch in batches for row in batch)),
        "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "seconds": time.monotonic() - started,
    }


def _tokenize_demonstrations(
    turn_tokenizer: TurnTokenizer, config: Config, report: ReportProgress
) -> tuple[list[TrainingSample], int]:
    """Play the expert's episodes; return samples of those that it won, and how many these are."""
    settings = config.warm_start
    samples: list[TrainingSample] = []
    won = 0
    for number, episode in enumerate(play_tasks(config, settings.episodes), 1):
        if episode is not None:
            try:
                samples += turn_tokenizer.tokenize(episode)
            except ValueError as error:
                raise NoDemonstrations(f"warm_start.episodes: {error}") from None
            won += 1
        report("demonstrations", number, settings.episodes, won=won)
    if not samples:
        raise NoDemonstrations(
            f"warm_start.episodes: the expert won none of {settings.episodes} demonstrations, and "
            "only those are imitated; lower warm_start.wasted_turn_rate and expert_error_rate, or "
            f"see what it does: `{this_command()} check`"
        )
    return samples, won


def _tokenize_file(
    turn_tokenizer: TurnTokenizer, config: Config, report: ReportProgress
) -> list[TrainingSample]:
    """Make samples of the conversations in `warm_start.data`."""
    environment = make_environment(config.env.name, **config.environment_settings())
    conversations = read_conversations(config, environment)
    context = config.engine.max_model_len
    samples: list[TrainingSample] = []
    for number, conversation in enumerate(conversations, 1):
        samples += tokenize_conversation(conversation, turn_tokenizer, context)
        report("conversations", number, len(conversations), turns=len(samples))
    return samples


def make_optimizers(
    model: PreTrainedModel, settings: WarmStartSection
) -> list[torch.optim.Optimizer]:
    """Make AdamW, and Muon for the matrices inside the layers, if it has a learning rate.

    Their learning rates are those at the peak.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if settings.muon_learning_rate and parameter.ndim == 2 and ".layers." in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=settings.muon_learning_rate))
    adam = torch.optim.AdamW(
        others, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    optimizers.append(adam)
    return optimizers


def learning_rate_fraction(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step` of `steps`.

    It rises linearly, then falls by a cosine to FINAL_FRACTION.
    """
    rising_steps = max(1, round(WARM_UP_FRACTION * steps))
    if step < rising_steps:
        return (step + 1) / rising_steps
    progress = (step - rising_steps) / max(1, steps - rising_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine


def draw_batches(
    rows: Sequence[Row], batch_tokens: int, epochs: float, rng: np.random.Generator
) -> Iterator[list[Row]]:
    """Draw random batches of about `batch_tokens` prompt and response tokens.

    Every epoch has a new order; the last may be cut short.
    """
    remaining_tokens = epochs * sum(map(row_length, rows))
    batch: list[Row] = []
    tokens = 0
    while remaining_tokens > 0:
        for index in rng.permutation(len(rows)):
            length = row_length(rows[index])
            batch.append(rows[index])
            tokens += length
            remaining_tokens -= length
            if tokens >= batch_tokens:
                yield batch
                batch = []
                tokens = 0
            if remaining_tokens <= 0:
                break
    if batch:
        yield batch


def imitate_batch(
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    rows: Sequence[Row],
    precision: str = "float32",
) -> float:
    """Take one step on the mean cross-entropy of the response tokens.

    Returns it, in nats, as it was before the step.
    """
    denominator = sum(sample.trained_tokens for row in rows for sample in row)
    total = 0.0
    for batch in microbatches(rows, MICROBATCH_TOKENS):
        log_pi, _ = log_probs(model, batch, temperature=1.0, precision=precision)
        loss = -log_pi.sum() / denominator
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total
