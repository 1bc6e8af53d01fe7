"""Off-policy corrections, by the name that `learner.correction` gives: one file each, (tokens,
settings) -> Corrected."""

from __future__ import annotations

from collections.abc import Callable

from config import LearnerSection
from learner.losses.cispo import cispo
from learner.losses.decoupled import decoupled
from learner.losses.gspo import gspo
from learner.losses.masked_is import mis
from learner.losses.ppo import ppo
from learner.losses.reinforce import none
from learner.losses.tokens import TokenLoss, Tokens
from learner.losses.truncated_is import tis
from learner.losses.vtrace import vtrace

Correction = Callable[[Tokens, LearnerSection], TokenLoss]

CORRECTIONS: dict[str, Correction] = {
    "none": none,
    "ppo": ppo,
    "decoupled": decoupled,
    "tis": tis,
    "mis": mis,
    "gspo": gspo,
    "cispo": cispo,
    "vtrace": vtrace,
}

NEEDS_OLD_LOG_PROBS = frozenset({"decoupled", "vtrace"})
"""Those that need the log-probs of the policy at the start of the update: a further forward pass
over the batch."""

__all__ = ["CORRECTIONS", "NEEDS_OLD_LOG_PROBS", "Correction", "TokenLoss", "Tokens"]
