"""The weight that undoes what sampling stalled turns again does to the training distribution.

In a state, let the policy's response be stalled with probability r, and be sampled again at most B
times, the last one kept in any case. Of the kept response y, with p the policy's own distribution,

    q(y) = p(y) (1 + r + ... + r^B)           if y is not stalled: it was the first of so many
         = p(y) (1 - r^(B+1)) / (1 - r)
    q(y) = p(y) r^B                           if it is: all before it were, too

which sums to 1. So expectations under p are those under q weighted by w = p/q:
(1 - r) / (1 - r^(B+1)), or r^-B. Each state has its own r, of which a turn shows a sample or three;
r is estimated over the batch. Where control keeps r at 5 % and B = 2, the first weight is 0.95 and
the second one 400 for 1 turn in 400. It is truncated (as in TIS), which leaves a small bias and no
explosion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from protocol.messages import Response, Turn


def stall_rate(turns: Sequence[Turn]) -> float:
    """Return r: the share of stalled ones among all samples that could have been stalled.

    It is 0 without any.
    """
    responses = [response for turn in turns for response in (*turn.rejected, turn.kept)]
    scored = [response for response in responses if _could_stall(response)]
    if not scored:
        return 0.0
    return sum(map(_is_stalled, scored)) / len(scored)


def resampling_weight(turn: Turn, rate: float, resamples: int, cap: float) -> float:
    """Return w of the kept response, at most `cap`; 1 where it could not have been stalled.

    `resamples`: B.
    """
    if not _could_stall(turn.kept) or not 0 < rate < 1:
        return 1.0
    if _is_stalled(turn.kept):
        return min(cap, rate**-resamples)
    return min(cap, (1 - rate) / (1 - rate ** (resamples + 1)))


def _could_stall(response: Response) -> bool:
    """Tell whether control had a limit for the response."""
    return not math.isnan(response.eta)


def _is_stalled(response: Response) -> bool:
    return any(
        event.kind in ("resample", "keep") and event.reason in ("stalled", "early")
        for event in response.events
    )
