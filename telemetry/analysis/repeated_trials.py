"""Success of tasks that were played several times each: its mean, pass@k, and their intervals.

Pure: of how often each task was solved, in so many samples of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, variance
from typing import NamedTuple

from telemetry.analysis.intervals import wilson_interval


class Trials(NamedTuple):
    """Samples of one task."""

    successes: int
    samples: int


class Estimate(NamedTuple):
    """A share, with its 95 % interval."""

    mean: float
    low: float
    high: float
    tasks: int
    """Tasks that it was estimated of."""


def pass_at_k(successes: int, samples: int, k: int) -> float:
    """Estimate the probability that one of `k` samples of a task succeeds, without bias.

    1 - C(n-c, k) / C(n, k), for c successes in n samples (Chen et al. 2021, arXiv 2107.03374,
    section 2.1), as a product, which does not overflow. Raises ValueError unless 1 <= k <= n and
    0 <= c <= n.
    """
    if not (1 <= k <= samples and 0 <= successes <= samples):
        raise ValueError(f"{k} of {samples} samples, of which {successes} succeeded")
    failures = samples - successes
    if failures < k:
        return 1.0
    all_fail = 1.0
    for i in range(k):
        all_fail *= (failures - i) / (samples - i)
    return 1.0 - all_fail


def estimate_pass_at_k(trials: Sequence[Trials], k: int = 1) -> Estimate | None:
    """Estimate pass@k over tasks, each of which counts once; with k = 1 that is mean success.

    Tasks with fewer than `k` samples are left out; None without any other.

    The interval is Wilson's, for as many independent trials as would leave the mean as uncertain as
    the tasks' spread does (the effective sample size; Dean and Pagano 2015, "Evaluating confidence
    interval methods for binomial proportions in clustered surveys"). These are at least the tasks
    and at most the samples. With one sample a task it is Wilson's interval of the share.
    """
    counted = [one for one in trials if one.samples >= k]
    if not counted:
        return None
    values = [pass_at_k(successes, samples, k) for successes, samples in counted]
    mean = fmean(values)
    independent = sum(samples for _, samples in counted) / k
    size = _effective_size(values, mean, independent)
    low, high = wilson_interval(mean, size)
    return Estimate(mean, low, high, len(counted))


def _effective_size(values: Sequence[float], mean: float, most: float) -> float:
    """Number of independent trials whose mean varies as that of `values` does.

    It is at least their number, and no more than `most`.
    """
    least = len(values)
    if least < 2 or mean in (0.0, 1.0):
        return least  # which tells nothing of how they vary
    spread = variance(values, mean)
    if least * mean * (1 - mean) >= most * spread:
        return most
    return max(least, least * mean * (1 - mean) / spread)


def reported_ks(samples: int) -> list[int]:
    """List the k above 1 of which pass@k is reported: powers of two, and all `samples`."""
    ks = [1 << power for power in range(1, samples.bit_length()) if 1 << power < samples]
    if samples > 1:
        ks.append(samples)
    return ks
