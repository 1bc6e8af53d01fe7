"""Signals from the most likely tokens alone, where the engine reports no more.

The rest of the distribution is bounded.

With K known log-probs, the least of the most likely ones log p_k, and the rest of the mass r spread
over the V - K other tokens, each of which has at most p_k:

    -sum_known p log p - r log p_k   <=   H   <=   -sum_known p log p - r log(r / (V - K))

(below: no token of the rest is more likely than p_k; above: the rest is uniform). The estimate is
the middle; it is exact where r is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log


def entropy_bounds(
    top: Sequence[float], others: Sequence[float], vocabulary: int
) -> tuple[float, float]:
    """Bound the entropy: (least, largest) in nats.

    `top`: log-probs of the most likely tokens; `others`: of less likely ones that are known, too.
    """
    known = [p for p in (*top, *others) if p > float("-inf")]
    measured = -sum(exp(p) * p for p in known)
    rest = max(0.0, 1.0 - sum(exp(p) for p in known))
    unknown = vocabulary - len(top) - len(others)
    if rest == 0.0 or unknown <= 0:
        return measured, measured
    least = -rest * min(min(top), 0.0)
    # Rounding may leave a rest that is more than the unknown tokens can have.
    return measured + least, measured + max(least, -rest * log(rest / unknown))


def estimate_from_topk(
    top: Sequence[float], others: Sequence[float], vocabulary: int, top_j: int
) -> tuple[float, float, float]:
    """Estimate (entropy, confidence, top-1 log-prob) of one token.

    With fewer than `top_j` known tokens, the confidence is the mean over these.
    """
    ordered = sorted(top, reverse=True)
    least, largest = entropy_bounds(ordered, others, vocabulary)
    best = [p for p in ordered[:top_j] if p > float("-inf")]
    return (least + largest) / 2, -sum(best) / len(best), ordered[0]
