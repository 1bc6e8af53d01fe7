"""Off-policy corrections, by the name that `learner.correction` gives: one file each, (tokens, settings) -> Corrected."""

from __future__ import annotations

from collections.abc import Callable

from config import LearnerSection
from learner.corrections.cispo import cispo
from learner.corrections.decoupled import decoupled
from learner.corrections.gspo import gspo
from learner.corrections.mis import mis
from learner.corrections.none import none
from learner.corrections.ppo import ppo
from learner.corrections.tis import tis
from learner.corrections.tokens import Corrected, Tokens
from learner.corrections.vtrace import vtrace

Correction = Callable[[Tokens, LearnerSection], Corrected]

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

PROXIMAL = frozenset({"decoupled", "vtrace"})
"""Those that need the log-probs of the policy at the start of the update: a further forward pass over the batch."""

__all__ = ["CORRECTIONS", "PROXIMAL", "Corrected", "Correction", "Tokens"]
