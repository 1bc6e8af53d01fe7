"""Settings of advantage estimators: each type has its own, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from config.section import Section, says

Weighting = Annotated[
    Literal["turn", "episode"],
    says("Weighting of returns in their mean and deviation: each counts once a turn, or episode"),
]

Normalization = Annotated[bool, says("Divide advantages by their standard deviation")]


class Algorithm(Section, frozen=True, tag_field="type"):
    """Settings that every advantage estimator has."""

    invalid_penalty: Annotated[
        float, says("Penalty on the advantage of a turn without a valid action", ge=0)
    ] = 1.0

    @property
    def type(self) -> str:
        """The estimator's name, as `learner.algorithm.type` has it."""
        return str(self.__struct_config__.tag)

    @property
    def needs_anchor_texts(self) -> bool:
        """True if states are compared by their texts, and not by digests of them."""
        return False


class GrpoAlgorithm(Algorithm, frozen=True, tag="grpo"):
    """GRPO: an episode against the others of its group."""

    normalize_advantages: Normalization = True
    baseline_weighting: Weighting = "turn"


class GigpoAlgorithm(Algorithm, frozen=True, tag="gigpo"):
    """GiGPO: GRPO, and below it a comparison of turns that were in the same state."""

    normalize_advantages: Normalization = True
    baseline_weighting: Weighting = "turn"
    discount: Annotated[float, says("Discount of rewards", ge=0, le=1)] = 0.95
    anchor_similarity: Annotated[
        float,
        says(
            "Share of equal words from which on two turns are in the same state; 1: all (0.9 is "
            "usual in Search)",
            gt=0,
            le=1,
        ),
    ] = 1.0
    step_weight: Annotated[float, says("omega: weight of the step advantage", ge=0)] = 1.0

    @property
    def needs_anchor_texts(self) -> bool:
        """True if states are compared by their texts, and not by digests of them."""
        return self.anchor_similarity < 1


class RlooAlgorithm(Algorithm, frozen=True, tag="rloo"):
    """RLOO: an episode's return less the mean of the others'; never divided by a deviation."""

    baseline_weighting: Weighting = "turn"


class ReinforcePlusPlusAlgorithm(Algorithm, frozen=True, tag="reinforce++"):
    """REINFORCE++: returns compared over the batch, and divided by its deviation."""

    baseline_weighting: Weighting = "turn"


class ReinforcePlusPlusBaselineAlgorithm(Algorithm, frozen=True, tag="reinforce++-baseline"):
    """REINFORCE++ of returns less their group's mean."""

    baseline_weighting: Weighting = "turn"


class GaeAlgorithm(Algorithm, frozen=True, tag="gae"):
    """GAE: a turn against what a value head expected, as PPO has it."""

    normalize_advantages: Normalization = True
    discount: Annotated[float, says("Discount of rewards", ge=0, le=1)] = 0.95
    gae_lambda: Annotated[
        float,
        says("lambda; 1 trusts the rewards, 0 the value head; loss vtrace has none", ge=0, le=1),
    ] = 0.95
    value_learning_rate: Annotated[float, says("Step size of AdamW for the value head", gt=0)] = (
        3e-3
    )


AnyAlgorithm = (
    GigpoAlgorithm
    | GrpoAlgorithm
    | RlooAlgorithm
    | ReinforcePlusPlusAlgorithm
    | ReinforcePlusPlusBaselineAlgorithm
    | GaeAlgorithm
)
