"""Policy-gradient losses, by the name that `learner.loss.type` gives: one file each.

Each is a function (tokens, its own settings) -> TokenLoss. They differ in how they correct for
tokens that an older policy sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learner.losses.cispo import cispo
from learner.losses.decoupled import decoupled
from learner.losses.gspo import gspo
from learner.losses.masked_is import masked_is
from learner.losses.ppo import ppo
from learner.losses.reinforce import reinforce
from learner.losses.tokens import TokenLoss, Tokens
from learner.losses.truncated_is import truncated_is
from learner.losses.vtrace import vtrace

LossFunction = Callable[[Tokens, Any], TokenLoss]

LOSSES: dict[str, LossFunction] = {
    "reinforce": reinforce,
    "ppo": ppo,
    "decoupled": decoupled,
    "tis": truncated_is,
    "mis": masked_is,
    "gspo": gspo,
    "cispo": cispo,
    "vtrace": vtrace,
}

NEEDS_OLD_LOG_PROBS = frozenset({"decoupled", "vtrace"})
"""Losses that need the log-probs of the policy at the start of the update.

They cost a further forward pass over the batch.
"""

__all__ = ["LOSSES", "NEEDS_OLD_LOG_PROBS", "LossFunction", "TokenLoss", "Tokens"]
