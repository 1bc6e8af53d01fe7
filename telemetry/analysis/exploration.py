"""How efficiently agents explore: pure measures of played episodes, as defined in
docs/measurements/exploration.md.

A `ExplorationCounts` counts; tallies of parts add up to the tally of the whole. `Exploration`
follows a run, batch by batch: in the learner while it goes on, or over its log afterwards, with the
same result. Turns are told apart by their age: the version that was trained when the learner took
their batch, less the oldest version that sampled one of their tokens. Groups and episodes have the
age of their oldest turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite, nan

import numpy as np

from protocol.arrays import FLOAT16, unpack
from protocol.messages import Trajectory, Turn

FLAT = 0.05
"""M_t is in [0, 1]; a change smaller than this counts as none."""
LIMIT = 2**18
"""Distinct states, and pairs, that a run remembers: some 25 MB each."""
EQUAL = 1e-9
"""Returns that differ by less, as a share of the largest, are equal: sums of equal rewards in
another order differ in their last bits."""
GAMMA_BINS = np.concatenate([[0.0], np.logspace(-6, 0, 61)])
"""Edges for Gamma in [0, 1], 10 bins a decade: quantiles are right to a quarter of their value."""


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
    gammas: np.ndarray = field(
        default_factory=lambda: np.zeros(len(GAMMA_BINS) - 1, dtype=np.int64)
    )
    thinking: int = 0  # tokens, of thoughts with a signal
    flat: int = 0  # of these, those after the last change of M_t
    episodes: int = 0
    successes: int = 0
    groups: int = 0
    members: int = 0
    first_actions: int = 0  # distinct ones, summed over groups
    paths: int = 0  # distinct sequences of actions, likewise
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


def compute_measures(tally: ExplorationCounts) -> dict[str, float]:
    """The measures (telemetry/metrics_schema.py has their units); those that nothing was counted
    for are left out."""
    t = tally
    found = {
        "coverage_states": _ratio(1000 * len(t.states), t.tokens),
        "coverage_pairs": _ratio(1000 * len(t.pairs), t.tokens),
        "repeated_states": _ratio(t.repeated_states, t.later_turns),
        "repeated_pairs": _ratio(t.repeated_pairs, t.later_turns),
        "first_actions": _ratio(t.first_actions, t.members),
        "distinct_paths": _ratio(t.paths, t.members),
        "informative_share": _ratio(t.informative, t.groups),
        "gamma_p10": quantile(t.gammas, 0.1),
        "gamma_p50": quantile(t.gammas, 0.5),
        "gamma_p90": quantile(t.gammas, 0.9),
        "stalled_share": _ratio(t.stalled, t.compared),
        "flat_thinking": _ratio(t.flat, t.thinking),
        "rejected_share": _ratio(t.rejected_tokens, t.tokens),
        "forced_share": _ratio(t.forced_tokens, t.tokens),
        "successes_per_million": _ratio(1e6 * t.successes, t.tokens),
    }
    return {name: value for name, value in found.items() if isfinite(value)}


def count_by_age(
    groups: Iterable[Sequence[Trajectory]], version: int
) -> dict[int, ExplorationCounts]:
    """Age -> tally, of groups that the learner took when it had trained `version`."""
    found: dict[int, ExplorationCounts] = {}
    for group in groups:
        ages = []
        for episode in group:
            ages.append(max([_age(turn, version) for turn in episode.turns], default=0))
            _count_turns(episode, version, found)
            tally = found.setdefault(ages[-1], ExplorationCounts())
            tally.episodes += 1
            tally.successes += episode.success
        _count_group(group, found.setdefault(max(ages, default=0), ExplorationCounts()))
    return found


def equal_returns(returns: Sequence[float]) -> bool:
    """Whether all returns are equal but for rounding."""
    lowest = min(returns, default=0.0)
    highest = max(returns, default=0.0)
    return highest - lowest <= EQUAL * max(abs(lowest), abs(highest))


def merge_counts(parts: Iterable[ExplorationCounts]) -> ExplorationCounts:
    """The tally of all of them."""
    return sum(parts, ExplorationCounts())


class Exploration:
    """What a run has seen so far: all of it up to LIMIT, then a sample that grows no more.

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
        self.divisors = dict(zip(("states", "pairs"), divisors, strict=True))

    def observe_batch(
        self, groups: Sequence[Sequence[Trajectory]], version: int
    ) -> dict[str, float]:
        """The measures of the next batch, which the learner took when it had trained `version`: of
        all of it, of each age in it (NAME/ageN) if there are several, and how much of it is new."""
        parts = count_by_age(groups, version)
        batch = merge_counts(parts.values())
        found = compute_measures(batch)
        if len(parts) > 1:
            found |= {
                f"{name}/age{age}": value
                for age, part in sorted(parts.items())
                for name, value in compute_measures(part).items()
            }
        return found | self._take_in("states", batch.states) | self._take_in("pairs", batch.pairs)

    def _take_in(self, name: str, batch: set[int]) -> dict[str, float]:
        seen: set[int] = getattr(self, name)
        sampled = {digest for digest in batch if digest % self.divisors[name] == 0}
        found = {f"novel_{name}": len(sampled - seen) / len(sampled)} if sampled else {}
        seen |= sampled
        while len(seen) > LIMIT:
            self.divisors[name] *= 2
            seen -= {digest for digest in seen if digest % self.divisors[name]}
        return found | {f"known_{name}": float(len(seen) * self.divisors[name])}


def flat_tail(uncertainty: Sequence[float], thinking: int) -> tuple[int, int] | None:
    """(Tokens of the thought, those of them after M_t last changed by FLAT or more); None for a
    thought without a signal.

    The thought is the `thinking` tokens after the first of the response, which is <think>.
    """
    seen = [float(m) for m in uncertainty[1 : thinking + 1] if isfinite(m)]
    if len(seen) < 2:
        return None
    changed = [i for i in range(1, len(seen)) if abs(seen[i] - seen[i - 1]) >= FLAT]
    return len(seen), len(seen) - 1 - (changed[-1] if changed else 0)


def turn_gammas(turns: Sequence[Turn]) -> Iterator[float]:
    """Gamma of each turn against the one before, NaN for the first and where a score is missing.

    Every attempt that was made counts in control; here it is the kept one.
    """
    before = nan
    for turn in turns:
        yield abs(turn.kept.score - before)
        before = turn.kept.score


def quantile(counts: np.ndarray, share: float) -> float:
    """Of values that were counted in GAMMA_BINS: the middle of the bin it is in; NaN without
    values."""
    total = int(counts.sum())
    if not total:
        return nan
    i = int(np.searchsorted(np.cumsum(counts), share * total))
    return float((GAMMA_BINS[i] + GAMMA_BINS[i + 1]) / 2)


def _count_turns(episode: Trajectory, version: int, into: dict[int, ExplorationCounts]) -> None:
    states: set[int] = set()
    pairs: set[int] = set()
    for number, (turn, gamma) in enumerate(
        zip(episode.turns, turn_gammas(episode.turns), strict=True)
    ):
        tally = into.setdefault(_age(turn, version), ExplorationCounts())
        state = _digest(episode.task_index, turn.anchor)
        pair = _digest(episode.task_index, turn.anchor, turn.action)
        tally.turns += 1
        tally.later_turns += number > 0
        tally.repeated_states += state in states
        tally.repeated_pairs += pair in pairs
        states.add(state)
        pairs.add(pair)
        tally.states.add(state)
        tally.pairs.add(pair)
        rejected = sum(attempt.length for attempt in turn.rejected)
        tally.tokens += turn.kept.length + rejected
        tally.rejected_tokens += rejected
        tally.forced_tokens += sum(
            int(attempt.forced().sum()) for attempt in (turn.kept, *turn.rejected)
        )
        if isfinite(gamma):
            tally.compared += 1
            tally.stalled += bool(turn.rejected) or any(
                event.kind == "keep" for event in turn.kept.events
            )
            tally.gammas[np.searchsorted(GAMMA_BINS[1:-1], gamma)] += 1
        if (
            tail := flat_tail(unpack(turn.kept.uncertainty, FLOAT16), turn.kept.thinking)
        ) is not None:
            tally.thinking += tail[0]
            tally.flat += tail[1]


def _count_group(group: Sequence[Trajectory], tally: ExplorationCounts) -> None:
    paths = [tuple(turn.action for turn in episode.turns) for episode in group if episode.turns]
    tally.groups += 1
    tally.members += len(paths)
    tally.first_actions += len({path[0] for path in paths})
    tally.paths += len(set(paths))
    tally.informative += not equal_returns(
        [sum(turn.reward for turn in episode.turns) for episode in group]
    )


def _age(turn: Turn, version: int) -> int:
    """In versions; 0 also of what weights played that a crash has lost since, as in training."""
    return max([0, *(version - span.version for span in turn.kept.spans)])


def _digest(*parts: object) -> int:
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest())


def _ratio(part: float, of: float) -> float:
    return part / of if of else nan
