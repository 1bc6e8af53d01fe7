"""From rows of samples to random mini-batches, and to padded micro-batches for the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from learner.data.rows import Row, row_length
from learner.data.samples import TrainingSample

Item = TypeVar("Item")

MICROBATCH_OVERHEAD_TOKENS = 160
"""Tokens that cost about as much as a micro-batch does whatever is in it."""

SHARING_OVERHEAD_TOKENS = 1_024
"""Tokens that cost about as much as a micro-batch of its own and the pass over its prefix.

Of SmolLM2 in bfloat16, groups that saved 400 tokens took as long as without.
"""

COPIES_PER_TOKEN = 8
"""Tokens of a shared prompt whose keys and values, copied to a row, fill the memory of a token.

Kept for the gradient: 6 to 17 for Llamas of 9 and 32 heads, in float32 and bfloat16.
"""


class Pack(NamedTuple):
    """Rows that are computed at once, by their numbers, and what they have in common."""

    indices: list[int]
    shared: int
    """Tokens that all of the rows begin with, and that are computed once."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of S columns for the model, padded on the right, and their N tokens to train on."""

    prefix: Tensor  # int64 [P], P may be 0: tokens before the first column of every row
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
    rows: Sequence[Row],
    token_budget: int,
    *,
    everything: bool = False,
    shares_prompts: bool = False,
) -> Iterator[MicroBatch]:
    """Make micro-batches of the samples that need compute, or of all."""
    if not everything:
        needed = ([sample for sample in row if sample.needs_compute] for row in rows)
        rows = [row for row in needed if row]
    for pack in pack_rows(rows, token_budget, shares_prompts=shares_prompts):
        yield collate([rows[i] for i in pack.indices], pack.shared)


def pack_rows(
    rows: Sequence[Row], token_budget: int, *, shares_prompts: bool = False
) -> Iterator[Pack]:
    """Sort rows into packs of at most `token_budget` tokens, padding included.

    With `shares_prompts`, rows that begin with the same prompt have it in common where that saves
    more than packs of their own cost. Its last token stays in each row, which predicts the first
    of the response. Copies of its keys and values count, as each row keeps them for the gradient.
    """
    alone: list[int] = []
    for indices in _group_by_prompt(rows):
        shared = len(rows[indices[0]][0].prompt) - 1
        if not shares_prompts or (len(indices) - 1) * shared <= SHARING_OVERHEAD_TOKENS:
            alone += indices
            continue
        copies = shared // COPIES_PER_TOKEN
        for part in pack_by_length(
            indices,
            lambda i, own=copies - shared: row_length(rows[i]) + own,
            token_budget - shared,
        ):
            yield Pack(part, shared * (len(part) > 1))
    for part in pack_by_length(alone, lambda i: row_length(rows[i]), token_budget):
        yield Pack(part, 0)


def _group_by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Group the numbers of rows by the prompt of their first turn."""
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row[0].prompt.tobytes(), []).append(i)
    return list(groups.values())


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


def collate(rows: Sequence[Row], shared: int = 0) -> MicroBatch:
    """Make one micro-batch of all the rows, which have their first `shared` tokens in common.

    Padding is token 0; nothing attends to it.
    """
    samples = [sample for row in rows for sample in row]
    whole = np.zeros((len(rows), max(map(row_length, rows))), dtype=np.int64)
    for row, last in zip(whole, (row[-1] for row in rows), strict=True):
        row[: len(last.prompt)] = last.prompt
        row[len(last.prompt) : last.length] = last.response
    prefix, tokens = whole[0, :shared], whole[:, shared:]
    counts = [sample.trained_tokens for sample in samples]
    row_of_sample = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = np.concatenate([len(one.prompt) + np.flatnonzero(one.mask) for one in samples])
    columns -= shared
    log_mu = np.concatenate([sample.log_mu[sample.mask] for sample in samples])
    advantage = np.repeat([sample.advantage for sample in samples], counts)
    age = np.concatenate([sample.age[sample.mask] for sample in samples])
    return MicroBatch(
        prefix=torch.from_numpy(prefix),
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(np.repeat(row_of_sample, counts)),
        columns=torch.from_numpy(columns),
        turn=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        turns=len(samples),
        log_mu=torch.from_numpy(log_mu.astype(np.float32)),
        log_prox=_collate_log_prox(samples),
        advantage=torch.from_numpy(advantage.astype(np.float32)),
        age=torch.from_numpy(age.astype(np.int64)),
        padding=whole.size - sum(map(row_length, rows)),
    )


def _collate_log_prox(samples: Sequence[TrainingSample]) -> Tensor | None:
    known = [sample.log_prox[sample.mask] for sample in samples if sample.log_prox is not None]
    if len(known) < len(samples):
        return None
    return torch.from_numpy(np.concatenate(known).astype(np.float32))
