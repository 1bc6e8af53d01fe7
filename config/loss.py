"""Settings of policy-gradient losses: each type has its own, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from config.section import Section, says


class Loss(Section, frozen=True, tag_field="type"):
    """Settings that every loss has."""

    @property
    def type(self) -> str:
        """The loss's name, as `learner.loss.type` has it."""
        return str(self.__struct_config__.tag)


class ClippedLoss(Loss, frozen=True):
    """A loss with bounds on a ratio."""

    clip_low: Annotated[
        float, says("The ratio is clipped at 1 - this (gspo by default: at 1 - 3e-4)", gt=0, lt=1)
    ] = 0.2
    clip_high: Annotated[
        float, says("The ratio is clipped at 1 + this (gspo by default: at 1 + 4e-4)", gt=0)
    ] = 0.2


TisCap = Annotated[float, says("Largest importance weight", gt=0)]


class ReinforceLoss(Loss, frozen=True, tag="reinforce"):
    """The policy gradient without a correction."""


class PpoLoss(ClippedLoss, frozen=True, tag="ppo"):
    """PPO's clipped surrogate."""


class DecoupledLoss(ClippedLoss, frozen=True, tag="decoupled"):
    """Decoupled PPO: the age of the data is corrected apart from the step."""

    tis_cap: TisCap = 2.0


class TisLoss(Loss, frozen=True, tag="tis"):
    """Truncated importance sampling."""

    tis_cap: TisCap = 2.0


class MisLoss(Loss, frozen=True, tag="mis"):
    """Masked importance sampling."""

    mis_low: Annotated[float, says("Tokens of a smaller ratio are left out", ge=0, lt=1)] = 0.5
    mis_high: Annotated[float, says("Tokens of a larger ratio are left out", gt=1)] = 2.0
    mis_level: Annotated[
        Literal["token", "turn"], says("Owner of the ratio; a turn's is the geometric mean")
    ] = "token"


class GspoLoss(ClippedLoss, frozen=True, tag="gspo"):
    """GSPO: one clipped ratio a turn, with the bounds of its paper (arXiv 2507.18071)."""

    clip_low: Annotated[float, says("The ratio is clipped at 1 - this", gt=0, lt=1)] = 3e-4
    clip_high: Annotated[float, says("The ratio is clipped at 1 + this", gt=0)] = 4e-4


class CispoLoss(ClippedLoss, frozen=True, tag="cispo"):
    """CISPO: a clipped importance weight."""


class VtraceLoss(Loss, frozen=True, tag="vtrace"):
    """V-trace, which corrects the values, too, and is for gae alone."""

    vtrace_rho: Annotated[float, says("Largest importance weight of a turn", gt=0)] = 1.0
    vtrace_c: Annotated[
        float, says("Largest weight by which later turns reach back over a turn", gt=0)
    ] = 1.0


AnyLoss = (
    ReinforceLoss | PpoLoss | DecoupledLoss | TisLoss | MisLoss | GspoLoss | CispoLoss | VtraceLoss
)
