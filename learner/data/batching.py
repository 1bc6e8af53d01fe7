"""From samples to what goes through the model at once: random mini-batches, padded
micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from learner.data.samples import TrainingSample

Item = TypeVar("Item")

PART = 160
"""Tokens: about what a micro-batch costs whatever is in it."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What goes through the model at once: B rows of S columns, padded on the right, and the N
    tokens of them to train on."""

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
    """The samples, shuffled, in `count` parts of nearly equal size; fewer parts if there are fewer
    samples."""
    if not samples:
        return []
    order = rng.permutation(len(samples))
    return [[samples[i] for i in part] for part in np.array_split(order, min(count, len(samples)))]


def microbatches(
    samples: Sequence[TrainingSample], token_budget: int, *, everything: bool = False
) -> Iterator[MicroBatch]:
    """The samples that need compute, or all, as `parts` puts them together."""
    for part in parts(
        [sample for sample in samples if everything or sample.needs_compute], token_budget
    ):
        yield collate(part)


def parts(samples: Sequence[TrainingSample], token_budget: int) -> Iterator[list[TrainingSample]]:
    """The samples, as `parts_by` puts them together by their length."""
    return parts_by(samples, lambda sample: sample.length, token_budget)


def parts_by(
    items: Iterable[Item], length: Callable[[Item], int], token_budget: int
) -> Iterator[list[Item]]:
    """The items sorted by `length`, in parts of at most `token_budget` tokens, padding included, so
    that padding is least.

    One longer than the budget goes alone. By dynamic programming over where a part may begin, each
    part as dear as PART tokens.
    """
    ordered = sorted(items, key=length)
    # of the best parts of the first i items, and where the last of these parts begins
    cost = [0]
    begin = [0]
    for i, item in enumerate(ordered, 1):
        longest = length(item)
        first = max(0, i - max(1, token_budget // longest))
        j = min(range(first, i), key=lambda j: cost[j] + (i - j) * longest)
        cost.append(cost[j] + (i - j) * longest + PART)
        begin.append(j)
    bounds = [len(ordered)]
    while bounds[-1]:
        bounds.append(begin[bounds[-1]])
    for end, start in zip(reversed(bounds[:-1]), reversed(bounds[1:]), strict=True):
        yield ordered[start:end]


def collate(samples: Sequence[TrainingSample]) -> MicroBatch:
    """One micro-batch of all the samples. Padding is token 0; nothing attends to it."""
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
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(np.concatenate(rows)),
        columns=torch.from_numpy(np.concatenate(columns)),
        log_mu=torch.from_numpy(
            np.concatenate([s.log_mu[s.mask] for s in samples]).astype(np.float32)
        ),
        log_prox=_log_prox(samples),
        advantage=torch.from_numpy(
            np.repeat([s.advantage for s in samples], counts).astype(np.float32)
        ),
        age=torch.from_numpy(np.concatenate([s.age[s.mask] for s in samples]).astype(np.int64)),
        padding=tokens.size - sum(sample.length for sample in samples),
    )


def _log_prox(samples: Sequence[TrainingSample]) -> Tensor | None:
    known = [sample.log_prox[sample.mask] for sample in samples if sample.log_prox is not None]
    return (
        torch.from_numpy(np.concatenate(known).astype(np.float32))
        if len(known) == len(samples)
        else None
    )
