"""From trajectories to what the model computes on: one sample a turn, random mini-batches, padded micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import ControlSection, LearnerSection
from learner.advantages import ESTIMATORS, EpisodeReturns, GroupReturns
from learner.resampling import stall_rate, weight
from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import Span, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn, as trained on."""

    prompt: np.ndarray  # int32 [L]
    response: np.ndarray  # int32 [T]
    mask: np.ndarray  # bool [T]: trained on, that is chosen by the policy and with a finite behaviour log-prob
    log_mu: np.ndarray  # float32 [T]: behaviour log-prob at the sampling temperature; anything where mask is false
    age: np.ndarray  # int32 [T]: versions between the weights that sampled the token and the learner's
    advantage: float  # of every token of the turn
    log_prox: np.ndarray | None = None  # float32 [T]: log-prob by the policy at the start of the update, where a correction asks for it

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def trained_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def needs_compute(self) -> bool:
        """False where the policy gradient is known to be 0. Such a sample still counts in the token mean."""
        return self.advantage != 0.0 and bool(self.mask.any())


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What goes through the model at once: B rows of S columns, padded on the right, and the N tokens of them to train on."""

    tokens: Tensor  # int64 [B, S]
    rows: Tensor  # int64 [N]
    columns: Tensor  # int64 [N], at least 1: token (row, column) is predicted at (row, column - 1)
    log_mu: Tensor  # float32 [N]
    log_prox: Tensor | None  # float32 [N], where the samples have it
    advantage: Tensor  # float32 [N]
    age: Tensor  # int64 [N]
    padding: int  # columns, over all rows, that hold no token


def group_returns(group: Sequence[Trajectory]) -> GroupReturns:
    """What advantages are computed from: the played episodes of one task."""
    return GroupReturns(
        [
            EpisodeReturns(
                rewards=np.array([turn.reward for turn in episode.turns], dtype=np.float64),
                valid=np.array([turn.valid for turn in episode.turns], dtype=bool),
                anchors=[turn.anchor for turn in episode.turns],
            )
            for episode in group
        ]
    )


UNCONTROLLED = ControlSection(mode="off")


def samples_of(
    groups: Sequence[Sequence[Trajectory]], version: int, settings: LearnerSection, control: ControlSection = UNCONTROLLED
) -> list[Sample]:
    """Every turn of every played episode. `version`: of the learner's weights before the update.

    In control's mode `void` a turn without a valid action is left out, though its episode counts in the group's statistics. Dropped
    episodes are left out. Raises ValueError, naming the episode, where a turn's arrays do not fit together.
    """
    samples = []
    weighted = settings.resampling == "weight"
    rate = stall_rate([turn for group in groups for episode in group for turn in episode.turns]) if weighted else 0.0
    played = [[episode for episode in group if episode.dropped is None] for group in groups]
    played = [group for group in played if group]
    estimated = ESTIMATORS[settings.algorithm]([group_returns(group) for group in played], settings) if played else []
    for group, of_group in zip(played, estimated, strict=True):
        for episode, advantages in zip(group, of_group, strict=True):
            for number, (turn, advantage) in enumerate(zip(episode.turns, advantages, strict=True)):
                if control.mode == "void" and not turn.valid:
                    continue
                if weighted:
                    advantage = advantage * weight(turn, rate, control.max_resamples, settings.tis_cap)
                try:
                    samples.append(_sample(turn, float(advantage), version))
                except ValueError as error:
                    raise ValueError(f"episode {episode.key.id}, turn {number}: {error}") from None
    return samples


def _sample(turn: Turn, advantage: float, version: int) -> Sample:
    kept = turn.kept
    response = unpack(kept.tokens, INT32)
    log_mu = unpack(kept.log_probs, FLOAT32)
    mask = unpack(kept.mask, UINT8) > 0
    if not len(response) == len(log_mu) == len(mask):
        raise ValueError(f"{len(response)} tokens, {len(log_mu)} log-probs, {len(mask)} mask values")
    return Sample(
        prompt=unpack(turn.prompt, INT32),
        response=response,
        mask=mask & np.isfinite(log_mu),
        log_mu=log_mu,
        age=_ages(kept.spans, len(response), version),
        advantage=advantage,
    )


def _ages(spans: Sequence[Span], tokens: int, version: int) -> np.ndarray:
    age = np.full(tokens, -1, dtype=np.int32)
    for span in spans:
        # Negative for what weights played that a crash has lost since: no older than the newest.
        age[span.start : span.stop] = max(0, version - span.version)
    if (age < 0).any():
        raise ValueError(f"spans {list(spans)} leave tokens without a version")
    return age


def minibatches(samples: Sequence[Sample], count: int, rng: np.random.Generator) -> list[list[Sample]]:
    """The samples, shuffled, in `count` parts of nearly equal size; fewer parts if there are fewer samples."""
    if not samples:
        return []
    order = rng.permutation(len(samples))
    return [[samples[i] for i in part] for part in np.array_split(order, min(count, len(samples)))]


def microbatches(samples: Sequence[Sample], token_budget: int, *, everything: bool = False) -> Iterator[MicroBatch]:
    """The samples that need compute, or all, as `parts` puts them together."""
    for part in parts([sample for sample in samples if everything or sample.needs_compute], token_budget):
        yield collate(part)


def parts(samples: Sequence[Sample], token_budget: int) -> Iterator[list[Sample]]:
    """The samples sorted by length, as many at once as fit into `token_budget` tokens, padding included.

    A sample longer than the budget goes alone.
    """
    rows: list[Sample] = []
    for sample in sorted(samples, key=lambda s: s.length):
        if rows and (len(rows) + 1) * sample.length > token_budget:
            yield rows
            rows = []
        rows.append(sample)
    if rows:
        yield rows


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """One micro-batch of all the samples. Padding is token 0; nothing attends to it."""
    width = max(sample.length for sample in samples)
    tokens = np.zeros((len(samples), width), dtype=np.int64)
    rows, columns = [], []
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
        log_mu=torch.from_numpy(np.concatenate([s.log_mu[s.mask] for s in samples]).astype(np.float32)),
        log_prox=_log_prox(samples),
        advantage=torch.from_numpy(np.repeat([s.advantage for s in samples], counts).astype(np.float32)),
        age=torch.from_numpy(np.concatenate([s.age[s.mask] for s in samples]).astype(np.int64)),
        padding=tokens.size - sum(sample.length for sample in samples),
    )


def _log_prox(samples: Sequence[Sample]) -> Tensor | None:
    known = [sample.log_prox[sample.mask] for sample in samples if sample.log_prox is not None]
    return torch.from_numpy(np.concatenate(known).astype(np.float32)) if len(known) == len(samples) else None
