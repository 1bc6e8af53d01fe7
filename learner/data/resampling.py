"""What sampling stalled turns again does to the distribution that is trained on, and the weight
that undoes it.

In a state, let the policy's response be stalled with probability r, and be sampled again at most B
times, the last one kept in any case. Of the kept response y, with p the policy's own distribution,

    q(y) = p(y) (1 + r + ... + r^B) = p(y) (1 - r^(B+1)) / (1 - r)      if y is not stalled: it was the first of so many
    q(y) = p(y) r^B                                                     if it is: all before it were, too

which sums to 1. So expectations under p are those under q weighted by w = p/q: (1 - r) / (1 -
r^(B+1)), or r^-B. Each state has its own r, of which a turn shows a sample or three; r is estimated
over the batch. Where control keeps r at 5 % and B = 2, the first weight is 0.95 and the second one
400 for 1 turn in 400: it is truncated (as in TIS), which leaves a small bias and no explosion.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.messages import Response, Turn


def stall_rate(turns: Sequence[Turn]) -> float:
    """r: share of stalled ones among all samples that could have been stalled; 0 without any."""
    judged = [
        attempt
        for turn in turns
        for attempt in (*turn.rejected, turn.kept)
        if attempt.eta == attempt.eta
    ]
    return sum(_stalled(attempt) for attempt in judged) / len(judged) if judged else 0.0


def weight(turn: Turn, rate: float, resamples: int, cap: float) -> float:
    """w of the kept response, at most `cap`; 1 where it could not have been stalled.

    `resamples`: B.
    """
    kept = turn.kept
    if kept.eta != kept.eta or not 0 < rate < 1:
        return 1.0
    return min(
        cap, rate**-resamples if _stalled(kept) else (1 - rate) / (1 - rate ** (resamples + 1))
    )


def _stalled(attempt: Response) -> bool:
    return any(
        event.kind in ("resample", "keep") and event.reason in ("stalled", "early")
        for event in attempt.events
    )
