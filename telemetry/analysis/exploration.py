"""How efficiently agents explore: pure measures of played episodes.

They are defined in docs/measurements/exploration.md.

An `ExplorationCounts` counts; the counts of parts add up to those of all. `Exploration` follows a
run, batch by batch: in the learner while it goes on, or over its log afterwards, with the same
result. Turns are told apart by their age: the version that was trained when the learner took their
batch, less the oldest version that sampled one of their tokens. Groups and episodes have the age of
their oldest turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from typing import NamedTuple

import numpy as np

from protocol.arrays import FLOAT16, finite_or_none, unpack
from protocol.messages import Trajectory, Turn

FLAT = 0.05
"""A change of M_t, which is in [0, 1], that is smaller than this counts as none."""
LIMIT = 2**18
"""Distinct states, and pairs, that a run remembers: some 25 MB each."""
EQUAL = 1e-9
"""Returns that differ by less, as a share of the largest, are equal.

Sums of equal rewards in another order differ in their last bits.
"""
GAMMA_BINS = np.concatenate([[0.0], np.logspace(-6, 0, 61)])
"""Edges for Gamma in [0, 1], 10 bins a decade: quantiles are right to a quarter of their value."""
GAMMA_QUANTILES = {"gamma_p10": 0.1, "gamma_p50": 0.5, "gamma_p90": 0.9}


def _empty_histogram() -> np.ndarray:
    return np.zeros(len(GAMMA_BINS) - 1, dtype=np.int64)


@dataclass
class ExplorationCounts:
    """Sums over turns, episodes and groups."""

    turns: int = 0
    tokens: int = 0  # generated, those of rejected attempts included
    rejected_tokens: int = 0
    forced_tokens: int = 0  # that the controller chose
    states: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)  # (state, action)
    later_turns: int = 0  # but for the first of an episode
    repeated_states: int = 0
    repeated_pairs: int = 0
    compared: int = 0  # turns that have a Gamma
    stalled: int = 0  # turns of which an attempt was rejected, or would have been
    gammas: np.ndarray = field(default_factory=_empty_histogram)
    thinking: int = 0  # tokens, of thoughts with a signal
    flat: int = 0  # of these, those after the last change of M_t
    episodes: int = 0
    successes: int = 0
    groups: int = 0
    members: int = 0
    first_actions: int = 0  # distinct ones, summed over groups
    paths: int = 0  # distinct sequences of actions, summed over groups
    informative: int = 0  # groups whose returns differ

    def __add__(self, other: ExplorationCounts) -> ExplorationCounts:
        sums = {
            name: value + getattr(other, name)
            for name, value in vars(self).items()
            if not isinstance(value, set)
        }
        return ExplorationCounts(
            **sums, states=self.states | other.states, pairs=self.pairs | other.pairs
        )


def compute_measures(counts: ExplorationCounts) -> dict[str, float]:
    """The measures (telemetry/metrics_schema.py has their units) for which anything was counted."""
    fractions = {
        "coverage_states": (1000 * len(counts.states), counts.tokens),
        "coverage_pairs": (1000 * len(counts.pairs), counts.tokens),
        "repeated_states": (counts.repeated_states, counts.later_turns),
        "repeated_pairs": (counts.repeated_pairs, counts.later_turns),
        "first_actions": (counts.first_actions, counts.members),
        "distinct_paths": (counts.paths, counts.members),
        "informative_share": (counts.informative, counts.groups),
        "stalled_share": (counts.stalled, counts.compared),
        "flat_thinking": (counts.flat, counts.thinking),
        "rejected_share": (counts.rejected_tokens, counts.tokens),
        "forced_share": (counts.forced_tokens, counts.tokens),
        "successes_per_million": (1e6 * counts.successes, counts.tokens),
    }
    measures = {name: part / total for name, (part, total) in fractions.items() if total}
    for name, share in GAMMA_QUANTILES.items():
        gamma = quantile(counts.gammas, share)
        if gamma is not None:
            measures[name] = gamma
    return measures


def count_by_age(
    groups: Iterable[Sequence[Trajectory]], version: int
) -> dict[int, ExplorationCounts]:
    """Age -> counts, of groups that the learner took when it had trained `version`."""
    counts: dict[int, ExplorationCounts] = {}
    for group in groups:
        episode_ages = []
        for episode in group:
            age = max([_age(turn, version) for turn in episode.turns], default=0)
            episode_ages.append(age)
            _count_turns(episode, version, counts)
            of_age = counts.setdefault(age, ExplorationCounts())
            of_age.episodes += 1
            of_age.successes += episode.success
        group_age = max(episode_ages, default=0)
        _count_group(group, counts.setdefault(group_age, ExplorationCounts()))
    return counts


def equal_returns(returns: Sequence[float] | np.ndarray) -> bool:
    """Say whether all returns are equal but for rounding."""
    lowest = min(returns, default=0.0)
    highest = max(returns, default=0.0)
    return highest - lowest <= EQUAL * max(abs(lowest), abs(highest))


def merge_counts(parts: Iterable[ExplorationCounts]) -> ExplorationCounts:
    """The counts of all parts together."""
    return sum(parts, ExplorationCounts())


class Exploration:
    """States and pairs that a run has seen: all up to LIMIT, then a sample that grows no more.

    The sample is of those whose digest is a multiple of a power of two (Wegman's adaptive sampling;
    Flajolet 1990), so that the same ones are in it whenever they come: the share of new ones among
    them is that of all, and their number times the divisor is the number of all, to about 1 /
    sqrt(LIMIT / 2).
    """

    def __init__(
        self,
        states: Iterable[int] = (),
        pairs: Iterable[int] = (),
        divisors: Sequence[int] = (1, 1),
    ) -> None:
        self.states = set(states)
        self.pairs = set(pairs)
        self.divisors: dict[str, int] = dict(zip(("states", "pairs"), divisors, strict=True))

    def observe_batch(
        self, groups: Sequence[Sequence[Trajectory]], version: int
    ) -> dict[str, float]:
        """The measures of the next batch, which the learner took when it had trained `version`.

        They are those of all of it, of each age in it (NAME/ageN) if there are several, and how
        much of it is new.
        """
        by_age = count_by_age(groups, version)
        batch = merge_counts(by_age.values())
        measures = compute_measures(batch)
        if len(by_age) > 1:
            for age, counts in sorted(by_age.items()):
                for name, value in compute_measures(counts).items():
                    measures[f"{name}/age{age}"] = value
        measures |= self.remember("states", batch.states)
        measures |= self.remember("pairs", batch.pairs)
        return measures

    def remember(self, name: str, batch: set[int]) -> dict[str, float]:
        """Take a batch's digests; returns how much of it is new, and how many are known now."""
        measures = {}
        known: set[int] = getattr(self, name)
        sampled = {digest for digest in batch if digest % self.divisors[name] == 0}
        if sampled:
            measures[f"novel_{name}"] = len(sampled - known) / len(sampled)
        known |= sampled
        while len(known) > LIMIT:
            self.divisors[name] *= 2
            known -= {digest for digest in known if digest % self.divisors[name]}
        measures[f"known_{name}"] = float(len(known) * self.divisors[name])
        return measures


class FlatTail(NamedTuple):
    """Tokens of a thought, and those of them after M_t last changed by FLAT or more."""

    thinking: int
    flat: int


def flat_tail(uncertainty: Sequence[float] | np.ndarray) -> FlatTail | None:
    """How much of a thought came after its uncertainty had settled; None without a signal.

    `uncertainty`: M_t of its tokens, NaN where there is none.
    """
    signal = [float(m) for m in uncertainty if isfinite(m)]
    if len(signal) < 2:
        return None
    last_change = 0
    for i in range(1, len(signal)):
        if abs(signal[i] - signal[i - 1]) >= FLAT:
            last_change = i
    return FlatTail(len(signal), len(signal) - 1 - last_change)


def turn_gammas(turns: Sequence[Turn]) -> Iterator[float | None]:
    """Gamma of each turn against the one before; None for the first, and where a score is missing.

    Every attempt that was made counts in control; here it is the kept one.
    """
    before = None
    for turn in turns:
        score = finite_or_none(turn.kept.score)
        if score is None or before is None:
            yield None
        else:
            yield abs(score - before)
        before = score


def quantile(histogram: np.ndarray, share: float) -> float | None:
    """The middle of the bin of GAMMA_BINS that a quantile of the values is in; None without any."""
    total = int(histogram.sum())
    if not total:
        return None
    i = int(np.searchsorted(np.cumsum(histogram), share * total))
    return float((GAMMA_BINS[i] + GAMMA_BINS[i + 1]) / 2)


def _count_turns(episode: Trajectory, version: int, by_age: dict[int, ExplorationCounts]) -> None:
    states: set[int] = set()
    pairs: set[int] = set()
    for number, turn in enumerate(episode.turns):
        counts = by_age.setdefault(_age(turn, version), ExplorationCounts())
        state = _digest(episode.task_index, turn.anchor)
        pair = _digest(episode.task_index, turn.anchor, turn.action)
        counts.turns += 1
        counts.later_turns += number > 0
        counts.repeated_states += state in states
        counts.repeated_pairs += pair in pairs
        states.add(state)
        pairs.add(pair)
        counts.states.add(state)
        counts.pairs.add(pair)
        _count_tokens(turn, counts)
    for turn, gamma in zip(episode.turns, turn_gammas(episode.turns), strict=True):
        if gamma is not None:
            _count_gamma(turn, gamma, by_age[_age(turn, version)])


def _count_tokens(turn: Turn, counts: ExplorationCounts) -> None:
    rejected = sum(attempt.length for attempt in turn.rejected)
    counts.tokens += turn.kept.length + rejected
    counts.rejected_tokens += rejected
    for attempt in (turn.kept, *turn.rejected):
        counts.forced_tokens += int(attempt.forced().sum())
    begin = turn.kept.thought_start
    thought = slice(begin, begin + turn.kept.thinking)
    tail = flat_tail(unpack(turn.kept.uncertainty, FLOAT16)[thought])
    if tail is not None:
        counts.thinking += tail.thinking
        counts.flat += tail.flat


def _count_gamma(turn: Turn, gamma: float, counts: ExplorationCounts) -> None:
    kept_though_stalled = any(event.kind == "keep" for event in turn.kept.events)
    counts.compared += 1
    counts.stalled += bool(turn.rejected) or kept_though_stalled
    counts.gammas[np.searchsorted(GAMMA_BINS[1:-1], gamma)] += 1


def _count_group(group: Sequence[Trajectory], counts: ExplorationCounts) -> None:
    paths = [tuple(turn.action for turn in episode.turns) for episode in group if episode.turns]
    returns = [sum(turn.reward for turn in episode.turns) for episode in group]
    counts.groups += 1
    counts.members += len(paths)
    counts.first_actions += len({path[0] for path in paths})
    counts.paths += len(set(paths))
    counts.informative += not equal_returns(returns)


def _age(turn: Turn, version: int) -> int:
    """Return the age in versions.

    It is 0 also of what weights played that a crash has lost since, as in training.
    """
    return max([0, *(version - span.version for span in turn.kept.spans)])


def _digest(*parts: object) -> int:
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest())
