"""Early signs that training is about to fail, each named with its numbers; and whether a run collapsed, by definition.

A run has **collapsed** if the last of its evaluations succeeds in less than `COLLAPSED` of the best of them. Before that, signs show in the
updates; each compares with the run itself, but for the share that the importance weights leave:

    reward drop       mean reward of the last `WINDOW` updates below `DROP` of the best mean of as many
    entropy collapse  mean entropy of the last `WINDOW` updates below `ENTROPY` of that of the first
    gradient spike    gradient norm above `SPIKE` times the median of the `HISTORY` updates before
    few samples       effective sample size below `ess_floor` (learner.ess_floor): most tokens hardly count
    ratio tail        99th percentile of pi/mu above `TAIL`: what is trained on was sampled by another policy
    no gradient       no optimizer step of the update had a finite gradient, so that it changed nothing

Numbers that are not finite (of an update that computed nothing, say) are passed over.

Pure: of the records of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from statistics import mean, median

from telemetry.metrics_file import Record

COLLAPSED = 0.5
WINDOW = 5
DROP = 0.5
ENTROPY = 0.2
HISTORY, SPIKE = 10, 10.0
TAIL = 5.0


def collapsed(evaluations: Sequence[Record]) -> bool | None:
    """Whether the run has collapsed; None with fewer than two evaluations, or if none succeeded in anything."""
    shares = _values(evaluations, "success")
    if len(shares) < 2 or max(shares) == 0:
        return None
    return shares[-1] < COLLAPSED * max(shares)


def signs(updates: Sequence[Record], ess_floor: float) -> dict[str, str]:
    """{name of the sign: its numbers, in words} as of the last update."""
    found = {name: sign(updates) for name, sign in SIGNS.items()} if updates else {}
    found["few samples"] = _few_samples(updates[-1], ess_floor) if updates else ""
    return {name: words for name, words in found.items() if words}


def before_signs(update: int, checkpoints: Sequence[int]) -> int | None:
    """Of the updates that have a checkpoint, the last one that signs after `update` do not speak of; the first of all if there is none."""
    older = [number for number in checkpoints if number <= update - WINDOW]
    return max(older, default=min(checkpoints, default=None))


def _reward_drop(updates: Sequence[Record]) -> str:
    rewards = _values(updates, "reward")
    if len(rewards) < 2 * WINDOW:
        return ""
    means = [mean(rewards[i : i + WINDOW]) for i in range(len(rewards) - WINDOW + 1)]
    if max(means) <= 0 or means[-1] >= DROP * max(means):
        return ""
    return f"mean reward of the last {WINDOW} updates {means[-1]:.3g}, at best it was {max(means):.3g}"


def _entropy_collapse(updates: Sequence[Record]) -> str:
    entropies = _values(updates, "entropy")
    if len(entropies) < 2 * WINDOW:
        return ""
    first, last = mean(entropies[:WINDOW]), mean(entropies[-WINDOW:])
    return f"mean entropy of the last {WINDOW} updates {last:.3g} nats, at first it was {first:.3g}" if last < ENTROPY * first else ""


def _gradient_spike(updates: Sequence[Record]) -> str:
    norms = _values(updates, "grad_norm")
    if len(norms) <= HISTORY:
        return ""
    usual = median(norms[-HISTORY - 1 : -1])
    return f"gradient norm {norms[-1]:.3g}, usually {usual:.3g}" if norms[-1] > SPIKE * usual > 0 else ""


def _few_samples(update: Record, floor: float) -> str:
    share = update.get("effective_sample_size")
    return f"effective sample size {share:.2f} of 1" if share is not None and share < floor else ""


def _ratio_tail(updates: Sequence[Record]) -> str:
    ratio = updates[-1].get("ratio_p99")
    return f"99th percentile of pi/mu {ratio:.3g}" if ratio is not None and ratio > TAIL else ""


def _no_gradient(updates: Sequence[Record]) -> str:
    skipped, made = updates[-1].get("skipped_steps") or 0, updates[-1].get("optimizer_steps") or 0
    return f"gradients of all {skipped:.0f} optimizer steps not finite" if skipped and not made else ""


SIGNS: dict[str, Callable[[Sequence[Record]], str]] = {
    "reward drop": _reward_drop,
    "entropy collapse": _entropy_collapse,
    "gradient spike": _gradient_spike,
    "ratio tail": _ratio_tail,
    "no gradient": _no_gradient,
}


def _values(records: Sequence[Record], name: str) -> list[float]:
    return [value for record in records if isinstance(value := record.get(name), int | float) and isfinite(value)]
