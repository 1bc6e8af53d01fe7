"""Trajectories into groups, groups into batches, oldest first. A state machine without IO.

A group is *open* until each of its G members has arrived, played or dropped. Then it is *complete*,
and waits for its batch, if at least two members are left to compare (and differ, where that is
asked for); else it is dropped at once. A group that was handed out in a batch, or dropped, is
*closed*.

A batch is the lowest complete groups. It is taken as long as no group that stays behind has then
been passed by more than `window` later ones (controller/admission.py says what that bounds). With
0, groups are trained on in order of admission. Evaluations are kept apart and leave when complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from config import LearnerSection
from learner.data.drop_ledger import DropLedger, FirstEpisodes
from learner.data.samples import is_informative
from protocol.messages import FAILURES, DropReason, EpisodeKey, TaskOutcome, Trajectory

SHOWN_MEMBERS = 5
"""How many missing episodes are named by their numbers."""


class Batch(NamedTuple):
    """Groups to train on, in order of admission."""

    groups: list[int]
    trajectories: list[list[Trajectory]]


class IncompleteGroup(NamedTuple):
    """A group that is not complete, and its members that have not arrived."""

    group: int
    missing: list[int]


@dataclass
class ClosedGroups:
    """The groups that were handed out in a batch, or dropped.

    They are all below `next_group`, and those in `trained_ahead` and `dropped_ahead`.
    """

    next_group: int = 0
    trained_ahead: set[int] = field(default_factory=set)
    """Groups above `next_group` that were handed out in a batch."""
    dropped_ahead: set[int] = field(default_factory=set)
    """Groups above `next_group` that were dropped."""

    def __contains__(self, group: int) -> bool:
        return group < self.next_group or group in self.trained_ahead or group in self.dropped_ahead

    def ahead(self) -> list[int]:
        """Return the closed groups above `next_group`, in their order."""
        return sorted(self.trained_ahead | self.dropped_ahead)

    def add_trained(self, group: int) -> None:
        self.trained_ahead.add(group)
        self._advance()

    def add_dropped(self, groups: Collection[int]) -> None:
        self.dropped_ahead.update(groups)
        self._advance()

    def copy(self) -> ClosedGroups:
        """Return a copy that does not change with this one."""
        return ClosedGroups(self.next_group, set(self.trained_ahead), set(self.dropped_ahead))

    def _advance(self) -> None:
        while self.next_group in self.trained_ahead or self.next_group in self.dropped_ahead:
            self.trained_ahead.discard(self.next_group)
            self.dropped_ahead.discard(self.next_group)
            self.next_group += 1


class GroupBuffer:
    """The groups that are here and have not been handed out, and the evaluations under way."""

    def __init__(
        self,
        group_size: int,
        filter_groups: bool = False,
        settings: LearnerSection | None = None,
        window: int = 0,
    ) -> None:
        """`filter_groups`: groups that teach nothing are dropped, too (`is_informative`).

        Their returns are all equal (Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.2);
        `settings` say what is compared. `window`: most groups that may be trained on before one
        that was admitted earlier.
        """
        self.group_size = group_size
        self.closed = ClosedGroups()
        self.ledger = DropLedger()
        self._filter_groups = filter_groups
        self._settings = settings or LearnerSection()
        self._window = window
        self._first_episodes = FirstEpisodes(group_size)
        self._open: dict[int, dict[int, Trajectory]] = {}
        self._complete: dict[int, list[Trajectory]] = {}  # group -> the members that were played
        self._outcomes: list[TaskOutcome] = []  # of groups that were closed since they were asked
        self._evaluations: dict[int, dict[int, Trajectory]] = {}
        self._finished_evaluations: set[int] = set()

    def resume(self, closed: ClosedGroups, drops: Mapping[str, int]) -> None:
        """Go on where a checkpoint was written.

        `drops`: what was dropped of the closed groups and is not yet reported to telemetry.
        """
        self.closed = closed.copy()
        self._first_episodes.first_group = closed.next_group
        self.ledger.restore(closed.next_group - 1, drops)

    # --- arrivals

    def add(self, trajectory: Trajectory) -> bool:
        """Take a trajectory in; False if this episode is known already, by whatever lease.

        A played episode replaces the controller's notice that it was canceled.
        """
        self._first_episodes.note_arrival(trajectory.key)
        if trajectory.key.evaluation:
            is_new = self._add_evaluation(trajectory)
        else:
            is_new = self._add_training(trajectory)
        if is_new and trajectory.drop_reason is not None:
            self._record_dropped(trajectory.drop_reason, trajectory)
        return is_new

    def check_playable(self) -> None:
        """Raise NothingPlayable when all of the first episodes have failed."""
        self._first_episodes.check_playable(self.ledger.failures)

    def _add_evaluation(self, trajectory: Trajectory) -> bool:
        key = trajectory.key
        if key.group in self._finished_evaluations:
            return False
        members = self._evaluations.setdefault(key.group, {})
        if key.member in members:
            return False
        members[key.member] = trajectory
        return True

    def _add_training(self, trajectory: Trajectory) -> bool:
        key = trajectory.key
        if key.group in self.closed or key.group in self._complete:
            return False
        members = self._open.setdefault(key.group, {})
        known = members.get(key.member)
        if known is not None:
            was_canceled = known.drop_reason is DropReason.CANCELED
            if not was_canceled or trajectory.drop_reason is not None:
                return False
            self.ledger.revoke(key.group, DropReason.CANCELED, known)
        members[key.member] = trajectory
        return True

    def _record_dropped(self, reason: DropReason, trajectory: Trajectory) -> None:
        self.ledger.record(trajectory.key.group, reason, [trajectory])
        if reason in FAILURES:
            self._first_episodes.note_failure(reason, trajectory.key)
            self.ledger.record_failure(reason, trajectory)

    # --- groups and batches

    def collect_complete(self) -> list[int]:
        """Set groups that have become complete aside for batches; return those dropped instead."""
        unusable = []
        for group in sorted(self._open):
            if len(self._open[group]) < self.group_size:
                continue
            members = self._open.pop(group)
            played = [members[m] for m in sorted(members) if members[m].drop_reason is None]
            played = self._keep_one_task(group, played)
            reason = self._reason_to_drop(played)
            if reason is None:
                self._complete[group] = played
            else:
                self.ledger.record(group, reason, played)
                self._note_outcome(group, played)
                unusable.append(group)
        self.closed.add_dropped(unusable)
        return unusable

    def _keep_one_task(self, group: int, played: list[Trajectory]) -> list[Trajectory]:
        """Leave out episodes of another task than most of their group, which count as canceled.

        A resumed run with a curriculum may have drawn another task than the one that an episode,
        late from before, was played of.
        """
        counts = Counter(episode.task_index for episode in played)
        if len(counts) < 2:
            return played
        task = counts.most_common(1)[0][0]
        others = [episode for episode in played if episode.task_index != task]
        self.ledger.record(group, DropReason.CANCELED, others)
        return [episode for episode in played if episode.task_index == task]

    def _note_outcome(self, group: int, played: Sequence[Trajectory]) -> None:
        if played:
            solved = sum(episode.success for episode in played)
            outcome = TaskOutcome(group, played[0].task_index, solved, len(played) - solved)
            self._outcomes.append(outcome)

    def pop_outcomes(self) -> list[TaskOutcome]:
        """Return what came of the groups that were handed out or dropped since the last call."""
        outcomes = self._outcomes
        self._outcomes = []
        return outcomes

    def _reason_to_drop(self, played: list[Trajectory]) -> DropReason | None:
        """Return why a complete group cannot be trained on; None where it can."""
        if len(played) < 2:
            return DropReason.CANCELED  # a single one has nothing to be compared with
        if self._filter_groups and not is_informative(played, self._settings):
            return DropReason.UNINFORMATIVE
        return None

    def pop_batch(self, size: int) -> Batch | None:
        """Hand out the next batch of `size` groups.

        None while there are too few, or an earlier one has to come first.
        """
        groups = sorted(self._complete)[:size]
        if len(groups) < size or self._count_passing(groups) > self._window:
            return None
        for group in groups:
            self._note_outcome(group, self._complete[group])
        return Batch(groups, [self._hand_out(group) for group in groups])

    def pop_group(self, group: int) -> list[Trajectory] | None:
        """Hand out a complete group by its number, whatever is before it; None without one."""
        if group not in self._complete:
            return None
        return self._hand_out(group)

    def _hand_out(self, group: int) -> list[Trajectory]:
        """Take a complete group out, which is closed then."""
        self.closed.add_trained(group)
        return self._complete.pop(group)

    def _count_passing(self, groups: Collection[int]) -> int:
        """Count the groups, `groups` included, that have passed the lowest group left behind.

        That one has been passed most often, so it alone is checked.
        """
        behind = self._lowest_outside(groups)
        if behind > max(groups):
            # these pass nobody: in order of admission, whatever the window was before a resume
            return 0
        return sum(group > behind for group in (*self.closed.trained_ahead, *groups))

    def _lowest_outside(self, groups: Collection[int]) -> int:
        return next(
            group
            for group in count(self.closed.next_group)
            if group not in self.closed and group not in groups
        )

    # --- what is here

    def oldest_incomplete(self) -> IncompleteGroup:
        """Return the lowest group that is not complete, and the members that are missing."""
        group = self._lowest_outside(self._complete)
        arrived = self._open.get(group, {})
        missing = [member for member in range(self.group_size) if member not in arrived]
        return IncompleteGroup(group, missing)

    def describe_wait(self, update: int, size: int) -> str:
        """Say why the batch of `update`, of `size` groups, cannot be taken yet.

        It names who is missing from the oldest group that is not complete.
        """
        group, missing = self.oldest_incomplete()
        members = ", ".join(map(str, missing[:SHOWN_MEMBERS]))
        unnamed = len(missing) - SHOWN_MEMBERS
        if unnamed > 0:
            members += f" and {unnamed} more"
        return (
            f"{size} groups for update {update}, of which {len(self._complete)} are complete: "
            f"group {group} lacks {len(missing)} of its {self.group_size} episodes ({members})"
        )

    def unconsumed_keys(self) -> list[EpisodeKey]:
        """Return the training episodes that are here and not yet handed out."""
        complete = [episode.key for played in self._complete.values() for episode in played]
        return complete + [
            episode.key for members in self._open.values() for episode in members.values()
        ]

    def unconsumed_tasks(self) -> dict[int, int]:
        """Return the task of each group that `unconsumed_keys` has a played episode of."""
        groups = [list(members.values()) for members in self._open.values()]
        return {
            episode.key.group: episode.task_index
            for members in (*self._complete.values(), *groups)
            for episode in members
            if episode.drop_reason is None
        }

    def unconsumed_count(self) -> int:
        """Return how many training episodes are here and not yet handed out."""
        return sum(map(len, self._complete.values())) + sum(map(len, self._open.values()))

    # --- evaluations

    def evaluation_arrivals(self, evaluation: int) -> int:
        """Return how many episodes of an evaluation have arrived."""
        return len(self._evaluations.get(evaluation, {}))

    def pop_evaluation(self, evaluation: int, episodes: int) -> list[Trajectory] | None:
        """Hand out all trajectories of an evaluation; None while some are missing."""
        members = self._evaluations.get(evaluation, {})
        if len(members) < episodes:
            return None
        self._evaluations.pop(evaluation)
        self._finished_evaluations.add(evaluation)
        return [members[m] for m in sorted(members)]

    # --- what was dropped

    def closed_drops(self) -> Counter[str]:
        """Return what was dropped of closed groups and not yet reported, as fields of telemetry.

        A run that is resumed sees the other groups again.
        """
        return self.ledger.sum_of(self.closed)

    def pop_closed_drops(self) -> Counter[str]:
        """Return the same, to be reported to telemetry now."""
        return self.ledger.pop_sum_of(self.closed)

    def cancel_remaining(self) -> Counter[str]:
        """End the run: what is here and was not trained on counts as canceled.

        Returns all that was dropped and not yet reported to telemetry.
        """
        remaining = [episode for played in self._complete.values() for episode in played]
        remaining += [
            episode
            for members in self._open.values()
            for episode in members.values()
            if episode.drop_reason is None
        ]
        self.ledger.record(self.closed.next_group, DropReason.CANCELED, remaining)
        self._complete.clear()
        self._open.clear()
        return self.ledger.sum_of_all()
