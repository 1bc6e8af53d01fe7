"""Early signs that training is about to fail, each named with its numbers.

Here is also, by definition, whether a run has collapsed.

A run has **collapsed** if the last of its evaluations succeeds in less than `COLLAPSED` of the best
of them, and their 95 % intervals are apart. Before that, signs show in the updates; each compares
with the run itself, but for the share that the importance weights leave:

    reward drop       mean reward of the last `WINDOW` updates below `DROP` of the best mean of as
                      many
    entropy collapse  mean entropy of the last `WINDOW` updates below `ENTROPY` of that of the first
    gradient spike    gradient norm above `SPIKE` times the median of the `HISTORY` updates before
    few samples       effective sample size below learner.min_effective_sample_size: most tokens
                      hardly count
    ratio tail        99th percentile of pi/mu above `TAIL`: what is trained on was sampled by
                      another policy
    no gradient       no optimizer step of the update had a finite gradient, so that it changed
                      nothing

Numbers that are not finite (of an update that computed nothing, say) are passed over.

Pure: of the records of metrics.jsonl.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from math import inf, isfinite
from statistics import mean, median

from telemetry.metrics_schema import success_interval
from telemetry.sinks.metrics_file import Record

COLLAPSED = 0.5
WINDOW = 5
DROP = 0.5
ENTROPY = 0.2
HISTORY = 10
SPIKE = 10.0
TAIL = 5.0


def has_collapsed(evaluations: Sequence[Record]) -> bool | None:
    """Say whether the run has collapsed; None with too little to tell.

    That is with fewer than two evaluations, or if none of them succeeded in anything.
    """
    known = [record for record in evaluations if _finite_number(record, "success") is not None]
    best = max(known, key=operator.itemgetter("success"), default={"success": 0.0})
    if len(known) < 2 or best["success"] == 0:
        return None
    last = known[-1]
    if last["success"] >= COLLAPSED * best["success"]:
        return False
    return _differ_beyond_chance(last, best)


def _differ_beyond_chance(low: Record, high: Record) -> bool:
    """Tell whether the 95 % intervals of two evaluations are apart; True where one has none."""
    interval_low = success_interval(low)
    interval_high = success_interval(high)
    if interval_low is None or interval_high is None:
        return True
    return interval_low[1] < interval_high[0]


def collapse_signs(updates: Sequence[Record], min_effective_sample_size: float) -> dict[str, str]:
    """{name of the sign: its numbers, in words} as of the last update."""
    watch = SignWatch(min_effective_sample_size)
    signs: dict[str, str] = {}
    for update in updates:
        signs = watch.observe(update)
    return signs


class SignWatch:
    """Looks for signs update by update, at the same cost for each.

    It keeps the last few numbers, and the best or first of the others.
    """

    def __init__(self, min_effective_sample_size: float) -> None:
        self._min_effective_sample_size = min_effective_sample_size
        self.updates = 0
        self._rewards: deque[float] = deque(maxlen=WINDOW)
        self._rewards_seen = 0
        self._best_reward = -inf
        self._first_entropies: list[float] = []
        self._entropies: deque[float] = deque(maxlen=WINDOW)
        self._entropies_seen = 0
        self._norms: deque[float] = deque(maxlen=HISTORY + 1)

    def observe(self, update: Record) -> dict[str, str]:
        """Take the next update; returns the signs as of it."""
        self.updates += 1
        signs = {
            "reward drop": self._reward_drop(_finite_number(update, "reward")),
            "entropy collapse": self._entropy_collapse(_finite_number(update, "entropy")),
            "gradient spike": self._gradient_spike(_finite_number(update, "grad_norm")),
            "ratio tail": _ratio_tail(update),
            "no gradient": _no_gradient(update),
            "few samples": _few_samples(update, self._min_effective_sample_size),
        }
        return {name: words for name, words in signs.items() if words}

    def _reward_drop(self, reward: float | None) -> str:
        if reward is not None:
            self._rewards.append(reward)
            self._rewards_seen += 1
            if self._rewards_seen >= WINDOW:
                self._best_reward = max(self._best_reward, mean(self._rewards))
        if self._rewards_seen < 2 * WINDOW:
            return ""
        last = mean(self._rewards)
        if self._best_reward <= 0 or last >= DROP * self._best_reward:
            return ""
        return (
            f"mean reward of the last {WINDOW} updates {last:.3g}, at best it was "
            f"{self._best_reward:.3g}"
        )

    def _entropy_collapse(self, entropy: float | None) -> str:
        if entropy is not None:
            self._entropies.append(entropy)
            self._entropies_seen += 1
            if len(self._first_entropies) < WINDOW:
                self._first_entropies.append(entropy)
        if self._entropies_seen < 2 * WINDOW:
            return ""
        first = mean(self._first_entropies)
        last = mean(self._entropies)
        if last >= ENTROPY * first:
            return ""
        return (
            f"mean entropy of the last {WINDOW} updates {last:.3g} nats, at first it was "
            f"{first:.3g}"
        )

    def _gradient_spike(self, norm: float | None) -> str:
        if norm is not None:
            self._norms.append(norm)
        if len(self._norms) <= HISTORY:
            return ""
        *before, last = self._norms
        usual = median(before)
        if usual <= 0 or last <= SPIKE * usual:
            return ""
        return f"gradient norm {last:.3g}, usually {usual:.3g}"


def last_update_before_signs(update: int, checkpoints: Sequence[int]) -> int | None:
    """The last update with a checkpoint that signs after `update` do not speak of.

    It is the first checkpoint if all are too late, and None if there is none.
    """
    older = [number for number in checkpoints if number <= update - WINDOW]
    return max(older, default=min(checkpoints, default=None))


def _few_samples(update: Record, floor: float) -> str:
    share = update.get("effective_sample_size")
    if share is not None and share < floor:
        return f"effective sample size {share:.2f} of 1"
    return ""


def _ratio_tail(update: Record) -> str:
    ratio = update.get("ratio_p99")
    if ratio is not None and ratio > TAIL:
        return f"99th percentile of pi/mu {ratio:.3g}"
    return ""


def _no_gradient(update: Record) -> str:
    skipped = update.get("skipped_steps")
    if not skipped or update.get("optimizer_steps"):
        return ""
    return f"gradients of all {skipped:.0f} optimizer steps not finite"


def _finite_number(record: Record, name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, int | float) and isfinite(value):
        return value
    return None
