"""Settings of evaluations: how many tasks, of which sets, and how responses are decoded.

An evaluation plays tasks of one set or several. Its episodes are numbered: members of one group, as
`EvaluationPlan` deals them out. Controller and learner make the same plan of the same settings, so
that no message says which task of which set an episode is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from config.section import Section, says

AS_TRAINING = -1.0
"""Value of `eval.temperature` that stands for `sampling.temperature`."""

MIN_TEMPERATURE = 0.01
"""The least temperature above 0 that vLLM samples at."""

Split = Literal["held_out", "train"]

ONLY_SET = ""
"""Name of the set of a run that names none."""


class Decoding(NamedTuple):
    """How tokens are chosen from the policy's distribution, in the order of the fields."""

    temperature: float
    """0: the likeliest token, always."""
    top_k: int
    """Tokens that are left to choose from, the likeliest ones; 0: all."""
    top_p: float
    """Probability that the tokens left have at least, of those of `top_k`; 1: all."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class EvalSetSection(Section, frozen=True):
    """A set of tasks to evaluate on, under a name of its own."""

    split: Annotated[Split, says("Split that the tasks of the set are of")] = "held_out"
    first_task: Annotated[int, says("Number of the set's first task in the split", ge=0)] = 0
    tasks: Annotated[int, says("Tasks of the set; 0: as many as eval.episodes", ge=0)] = 0
    settings: dict[str, Any] = {}
    """Settings of the environment that are others for the set, by name."""


class EvalSection(Section, frozen=True):
    """How a policy is evaluated."""

    episodes: Annotated[
        int, says("Held-out tasks of an evaluation, or of each set that says no other number", ge=1)
    ] = 128
    samples: Annotated[
        int, says("Episodes of each task; with more than one, pass@k is reported", ge=1)
    ] = 1
    every: Annotated[
        int, says("Updates between evaluations; 0: only before and after training", ge=0)
    ] = 20
    control: Annotated[bool, says("Keep exploration control on while evaluating")] = False
    temperature: Annotated[
        float,
        says(
            "Temperature of the policy while it is evaluated; 0: the likeliest token, always; "
            "-1: that of sampling.temperature",
            ge=AS_TRAINING,
        ),
    ] = AS_TRAINING
    top_p: Annotated[
        float,
        says("Evaluations sample from the likeliest tokens of so much probability", gt=0, le=1),
    ] = 1.0
    top_k: Annotated[
        int, says("Evaluations sample from so many of the likeliest tokens; 0: from all", ge=0)
    ] = 0
    sets: dict[str, EvalSetSection] = {}
    """Sets of tasks by name, in their order; without any, held-out tasks are the only set.

    The first one's success is the run's.
    """


class PlannedSet(NamedTuple):
    """A set of an evaluation, as it is played."""

    name: str
    split: Split
    first_task: int
    tasks: int
    samples: int  # episodes of each task

    @property
    def episodes(self) -> int:
        """Count the set's episodes."""
        return self.tasks * self.samples


class PlannedEpisode(NamedTuple):
    """An episode of an evaluation: sample `sample` of a task."""

    set: PlannedSet
    index: int  # of the task in the set, from 0
    sample: int

    @property
    def task(self) -> int:
        """Number of the task in its split."""
        return self.set.first_task + self.index


class EvaluationPlan:
    """Deals out the episodes of an evaluation: first all tasks of the first set once each."""

    def __init__(self, sets: Sequence[PlannedSet]) -> None:
        self.sets = tuple(sets)
        self.episodes = sum(one.episodes for one in sets)
        """Episodes of all sets together."""

    def locate(self, member: int) -> PlannedEpisode:
        """Return which episode has the number `member`. IndexError for one that there is not."""
        if member >= 0:
            rest = member
            for one in self.sets:
                if rest < one.episodes:
                    sample, index = divmod(rest, one.tasks)
                    return PlannedEpisode(one, index, sample)
                rest -= one.episodes
        raise IndexError(f"an evaluation of {self.episodes} episodes has none of number {member}")


def plan_evaluation(settings: EvalSection) -> EvaluationPlan:
    """Make the plan of an evaluation by these settings."""
    if not settings.sets:
        only = PlannedSet(ONLY_SET, "held_out", 0, settings.episodes, settings.samples)
        return EvaluationPlan([only])
    return EvaluationPlan(
        [
            PlannedSet(
                name,
                one.split,
                one.first_task,
                one.tasks or settings.episodes,
                settings.samples,
            )
            for name, one in settings.sets.items()
        ]
    )
