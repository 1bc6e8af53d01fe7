"""From rows of samples to random mini-batches, and to padded micro-batches for the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from learner.data.rows import Row, row_length
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
    turn: Tensor  # int64 [N], 0 ... turns - 1: the sample of each token
    turns: int
    log_mu: Tensor  # float32 [N]
    log_prox: Tensor | None  # float32 [N], where the samples have it
    advantage: Tensor  # float32 [N]
    age: Tensor  # int64 [N]
    padding: int  # columns, over all rows, that hold no token


def minibatches(rows: Sequence[Row], count: int, rng: np.random.Generator) -> list[list[Row]]:
    """Shuffle rows into `count` mini-batches of nearly equal size.

    There are fewer if there are fewer rows.
    """
    if not rows:
        return []
    order = rng.permutation(len(rows))
    by_batch = np.array_split(order, min(count, len(rows)))
    return [[rows[i] for i in indices] for indices in by_batch]


def microbatches(
    rows: Sequence[Row], token_budget: int, *, everything: bool = False
) -> Iterator[MicroBatch]:
    """Make micro-batches of the samples that need compute, or of all."""
    if not everything:
        needed = ([sample for sample in row if sample.needs_compute] for row in rows)
        rows = [row for row in needed if row]
    for packed in pack_by_length(rows, row_length, token_budget):
        yield collate(packed)


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


def collate(rows: Sequence[Row]) -> MicroBatch:
    """Make one micro-batch of all the rows. Padding is token 0; nothing attends to it."""
    samples = [sample for row in rows for sample in row]
    tokens = np.zeros((len(rows), max(map(row_length, rows))), dtype=np.int64)
    for row, last in zip(tokens, (row[-1] for row in rows), strict=True):
        row[: len(last.prompt)] = last.prompt
        row[len(last.prompt) : last.length] = last.response
    counts = [sample.trained_tokens for sample in samples]
    row_of_sample = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = np.concatenate([len(one.prompt) + np.flatnonzero(one.mask) for one in samples])
    log_mu = np.concatenate([sample.log_mu[sample.mask] for sample in samples])
    advantage = np.repeat([sample.advantage for sample in samples], counts)
    age = np.concatenate([sample.age[sample.mask] for sample in samples])
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(np.repeat(row_of_sample, counts)),
        columns=torch.from_numpy(columns),
        turn=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        turns=len(samples),
        log_mu=torch.from_numpy(log_mu.astype(np.float32)),
        log_prox=_collate_log_prox(samples),
        advantage=torch.from_numpy(advantage.astype(np.float32)),
        age=torch.from_numpy(age.astype(np.int64)),
        padding=tokens.size - sum(map(row_length, rows)),
    )


def _collate_log_prox(samples: Sequence[TrainingSample]) -> Tensor | None:
    known = [sample.log_prox[sample.mask] for sample in samples if sample.log_prox is not None]
    if len(known) < len(samples):
        return None
    return torch.from_numpy(np.concatenate(known).astype(np.float32))
