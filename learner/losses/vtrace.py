"""V-trace's policy gradient: a turn is one action, and its truncated ratio weighs all its tokens
(Espeholt et al. 2018, IMPALA, arXiv 1802.01561, §4.2). Advantages and values that go with it:
learner/advantages/vtrace.py; it needs learner.algorithm gae.

The ratio of a turn is the product of its tokens': of long turns it is either truncated or next to
0, and then those hardly count. With vtrace_rho 1, as in the paper, no turn counts for more than
one.
"""

from __future__ import annotations

import torch

from config import LearnerSection
from learner.losses.ratio import MAX_LOG_RATIO, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def vtrace(tokens: Tokens, settings: LearnerSection) -> TokenLoss:
    """-rho A log pi, with rho = min(product over the turn of pi/mu, vtrace_rho) held constant.
    Clipped: the turn was truncated."""
    of_turn = tokens.sum_by_turn(log_ratio(tokens.log_pi, tokens.log_mu).detach())
    ratio = torch.exp(of_turn.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = ratio > settings.vtrace_rho
    return TokenLoss(
        -ratio.clamp(max=settings.vtrace_rho) * tokens.advantage * tokens.log_pi,
        clipped,
        torch.ones_like(clipped),
    )
