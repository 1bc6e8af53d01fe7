"""V-trace's policy gradient: a turn is one action, and its truncated ratio weighs all its tokens.

Espeholt et al. 2018, IMPALA, arXiv 1802.01561, §4.2. The advantages and values that go with it:
learner/advantages/vtrace.py; it needs learner.algorithm gae. The ratio of a turn is the product of
its tokens'. That of a long turn is either truncated or next to 0, and then the turn hardly counts.
With vtrace_rho 1, as in the paper, no turn counts for more than one.
"""

from __future__ import annotations

import torch

from config import VtraceLoss
from learner.losses.ratio import MAX_LOG_RATIO, log_ratio
from learner.losses.tokens import TokenLoss, Tokens


def vtrace(tokens: Tokens, settings: VtraceLoss) -> TokenLoss:
    """Return -rho A log pi, with rho = min(product over the turn of pi/mu, vtrace_rho).

    rho is held constant. Tokens of a turn whose ratio was truncated are clipped.
    """
    turn_log_ratio = tokens.sum_by_turn(log_ratio(tokens.log_pi, tokens.log_mu).detach())
    ratio = torch.exp(turn_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    rho = ratio.clamp(max=settings.vtrace_rho)
    clipped = ratio > settings.vtrace_rho
    loss = -rho * tokens.advantage * tokens.log_pi
    return TokenLoss(loss, clipped, kept=torch.ones_like(clipped))
