"""A curriculum: tasks that the policy solves at times are drawn more often than others.

Of a task that always succeeds, or never does, the episodes of a group have equal returns, and teach
nothing where these are compared. What is known of a task's chance of success p is a Beta
distribution: Beta(1 + solved, 1 + failed) of its episodes so far. These counts halve every
`half_life` groups, since the policy changes; so a task that was not drawn for long is as unknown as
one that never was.

A group's task is the one of some candidates with the largest p (1 - p), the variance of a success,
for a p drawn from each candidate's distribution (Thompson sampling: Thompson 1933; Russo et al.
2018, A Tutorial on Thompson Sampling). Half of the candidates are drawn from all tasks, and half
from those that are known: where there are more tasks than groups, the latter would hardly come
again. Every task stays possible.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

import msgspec

from protocol.messages import TaskOutcome

CANDIDATES = 8
"""How many tasks are drawn from all, and how many from those that are known."""

FORGOTTEN_EPISODES = 0.1
"""Episodes, as far as they still count, below which a task is forgotten."""


class TaskRecord(msgspec.Struct, array_like=True, frozen=True):
    """Episodes of a task, as far as they still count at a group."""

    solved: float
    failed: float
    group: int

    @property
    def success(self) -> float:
        """Mean of the distribution of the task's chance of success."""
        return (1 + self.solved) / (2 + self.solved + self.failed)


Records = Mapping[int, TaskRecord]
"""Task -> its record."""


class Choice(NamedTuple):
    """The task of a group, and what was known of it when it was drawn."""

    task: int
    is_known: bool
    success: float  # expected, from 0 to 1


def fade_record(record: TaskRecord, group: int, half_life: float) -> TaskRecord:
    """Return a record as it still counts at `group`; at an earlier one than its own, as it is."""
    groups = max(0, group - record.group)
    share = 0.5 ** (groups / half_life)
    return TaskRecord(share * record.solved, share * record.failed, record.group + groups)


def add_outcome(record: TaskRecord, outcome: TaskOutcome, half_life: float) -> TaskRecord:
    """Return a record with the outcome of one group more, in whatever order they come."""
    new = TaskRecord(outcome.solved, outcome.failed, outcome.group)
    group = max(record.group, new.group)
    record = fade_record(record, group, half_life)
    new = fade_record(new, group, half_life)
    return TaskRecord(record.solved + new.solved, record.failed + new.failed, group)


def find_record(records: Records, task: int, group: int, half_life: float) -> TaskRecord:
    """Return the record of a task as it still counts at `group`; an empty one if it is unknown."""
    record = records.get(task)
    if record is None:
        return TaskRecord(0, 0, group)
    return fade_record(record, group, half_life)


def draw_task(rng: random.Random, records: Records, group: int, size: int, half_life: float) -> int:
    """Draw the task of `group` from `size` tasks, by the records of those that are known."""
    known = sorted(task for task in records if task < size)
    candidates = [rng.randrange(size) for _ in range(CANDIDATES)]
    if known:
        candidates += rng.choices(known, k=CANDIDATES)
    variances = {}
    for task in dict.fromkeys(candidates):
        record = find_record(records, task, group, half_life)
        chance = rng.betavariate(1 + record.solved, 1 + record.failed)
        variances[task] = chance * (1 - chance)
    return max(variances, key=variances.__getitem__)


class Curriculum:
    """The tasks of a run's groups, and what is known of tasks, by which they are drawn."""

    def __init__(self, half_life: float) -> None:
        """`half_life`: groups after which an episode counts half; 0: there is no curriculum."""
        self._half_life = half_life
        self._choices: dict[int, Choice] = {}  # of the groups that are admitted
        self.records: dict[int, TaskRecord] = {}

    def note(self, outcomes: Iterable[TaskOutcome]) -> None:
        """Take note of groups that came to their end; forget what hardly counts any more."""
        if not self._half_life:
            return
        for outcome in outcomes:
            record = self.records.get(outcome.task, TaskRecord(0, 0, outcome.group))
            self.records[outcome.task] = add_outcome(record, outcome, self._half_life)
        newest = max((record.group for record in self.records.values()), default=0)
        for task, record in list(self.records.items()):
            faded = fade_record(record, newest, self._half_life)
            if faded.solved + faded.failed < FORGOTTEN_EPISODES:
                del self.records[task]

    def admit(self, seed: int, group: int, size: int, task: int | None = None) -> None:
        """Draw the task of a group, the same for the same records; `task`: it has one already."""
        if not self._half_life:
            if task is not None:
                self._choices[group] = Choice(task, False, 0.5)
            return
        if task is None:
            rng = random.Random(f"curriculum/{seed}/{group}")
            task = draw_task(rng, self.records, group, size, self._half_life)
        record = find_record(self.records, task, group, self._half_life)
        self._choices[group] = Choice(task, task in self.records, record.success)

    def task_of(self, group: int) -> int | None:
        """Return the task of an admitted group; None if the curriculum knows none."""
        choice = self._choices.get(group)
        if choice is None:
            return None
        return choice.task

    def forget_groups(self, groups: Iterable[int]) -> None:
        """Forget the tasks of groups that are played no more."""
        for group in groups:
            self._choices.pop(group, None)

    def gauges(self) -> dict[str, float | None]:
        """Read figures of the curriculum, by their names as metrics; none where there is none."""
        if not self._half_life:
            return {}
        gauges: dict[str, float | None] = {
            "curriculum_tasks": len(self.records),
            "curriculum_known_share": None,
            "curriculum_success": None,
        }
        choices = list(self._choices.values())
        if choices:
            gauges["curriculum_known_share"] = fmean(choice.is_known for choice in choices)
            gauges["curriculum_success"] = fmean(choice.success for choice in choices)
        return gauges

    def state(self) -> bytes:
        """Encode the records, for a checkpoint."""
        return msgspec.json.encode(self.records)

    def restore(self, state: bytes) -> None:
        """Go on with the records of a checkpoint, if there is a curriculum now."""
        if self._half_life:
            self.records = msgspec.json.decode(state, type=dict[int, TaskRecord])
