"""From samples to random mini-batches, and to padded micro-batches for the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from learner.data.samples import TrainingSample

Item = TypeVar("Item")

MICROBATCH_OVERHEAD_TOKENS = 160
"""Tokens that cost about as much as a micro-batch does whatever is in it."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of S columns for the model, padded on the right, and their N tokens to train on."""

    tokens: Tensor  # int64 [B, S]
    rows: Tensor  # int64 [N]
    columns: Tensor  # int64 [N], at least 1: token (row, column) is predicted at (row, column - 1)
    log_mu: Tensor  # float32 [N]
    log_prox: Tensor | None  # float32 [N], where the samples have it
    advantage: Tensor  # float32 [N]
    age: Tensor  # int64 [N]
    padding: int  # columns, over all rows, that hold no token


def minibatches(
    samples: Sequence[TrainingSample], count: int, rng: np.random.Generator
) -> list[list[TrainingSample]]:
    """Shuffle samples into `count` mini-batches of nearly equal size.

    There are fewer if there are fewer samples.
    """
    if not samples:
        return []
    order = rng.permutation(len(samples))
    by_batch = np.array_split(order, min(count, len(samples)))
    return [[samples[i] for i in indices] for indices in by_batch]


def microbatches(
    samples: Sequence[TrainingSample], token_budget: int, *, everything: bool = False
) -> Iterator[MicroBatch]:
    """Make micro-batches of the samples that need compute, or of all."""
    chosen = [sample for sample in samples if everything or sample.needs_compute]
    for packed in pack_samples(chosen, token_budget):
        yield collate(packed)


def pack_samples(
    samples: Sequence[TrainingSample], token_budget: int
) -> Iterator[list[TrainingSample]]:
    """Pack samples by their length, as `pack_by_length` does."""
    return pack_by_length(samples, lambda sample: sample.length, token_budget)


def pack_by_length(
    items: Iterable[Item], length: Callable[[Item], int], token_budget: int
) -> Iterator[list[Item]]:
    """Sort items by `length` into packs of at most `token_budget` tokens, padding included.

    Padding is least: dynamic programming over where a pack may begin, each pack as dear as
    MICROBATCH_OVERHEAD_TOKENS. An item longer than the budget goes alone.
    """
    ordered = sorted(items, key=length)
    costs = [0]  # of the best packs of the first i items
    starts = [0]  # where the last of these packs begins
    for i, item in enumerate(ordered, 1):
        longest = length(item)
        lowest = max(0, i - max(1, token_budget // longest))
        padded = [costs[j] + (i - j) * longest for j in range(lowest, i)]
        cheapest = min(padded)
        costs.append(cheapest + MICROBATCH_OVERHEAD_TOKENS)
        starts.append(lowest + padded.index(cheapest))
    ends = [len(ordered)]
    while ends[-1]:
        ends.append(starts[ends[-1]])
    for start, end in itertools.pairwise(reversed(ends)):
        yield ordered[start:end]


def collate(samples: Sequence[TrainingSample]) -> MicroBatch:
    """Make one micro-batch of all the samples. Padding is token 0; nothing attends to it."""
    width = max(sample.length for sample in samples)
    tokens = np.zeros((len(samples), width), dtype=np.int64)
    rows = []
    columns = []
    for row, sample in enumerate(samples):
        start = len(sample.prompt)
        tokens[row, :start] = sample.prompt
        tokens[row, start : sample.length] = sample.response
        trained = np.flatnonzero(sample.mask)
        rows.append(np.full(len(trained), row, dtype=np.int64))
        columns.append(start + trained)
    counts = [sample.trained_tokens for sample in samples]
    log_mu = np.concatenate([sample.log_mu[sample.mask] for sample in samples])
    advantage = np.repeat([sample.advantage for sample in samples], counts)
    age = np.concatenate([sample.age[sample.mask] for sample in samples])
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(np.concatenate(rows)),
        columns=torch.from_numpy(np.concatenate(columns)),
        log_mu=torch.from_numpy(log_mu.astype(np.float32)),
        log_prox=_collate_log_prox(samples),
        advantage=torch.from_numpy(advantage.astype(np.float32)),
        age=torch.from_numpy(age.astype(np.int64)),
        padding=tokens.size - sum(sample.length for sample in samples),
    )


def _collate_log_prox(samples: Sequence[TrainingSample]) -> Tensor | None:
    known = [sample.log_prox[sample.mask] for sample in samples if sample.log_prox is not None]
    if len(known) < len(samples):
        return None
    return torch.from_numpy(np.concatenate(known).astype(np.float32))
