"""Off-policy corrections, by the name that `learner.correction` gives.

Each: (log_pi [N], log_mu [N], advantage [N], settings) -> (loss a token [N], its ratio was clipped or truncated [N]).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from config import LearnerSection
from learner.corrections.ppo import ppo
from learner.corrections.tis import tis

Correction = Callable[[Tensor, Tensor, Tensor, LearnerSection], tuple[Tensor, Tensor]]

CORRECTIONS: dict[str, Correction] = {"ppo": ppo, "tis": tis}

__all__ = ["CORRECTIONS", "Correction"]
