"""Trajectories into groups, groups into batches, in the order of admission. A state machine without IO.

A group is *open* until each of its G members has arrived, played or dropped. Complete groups leave in order of their number:
into a batch if at least two members are left to compare (and differ, where that is asked for), else as dropped. Evaluations are kept
apart and leave when complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from config import LearnerSection
from learner.samples import informative
from protocol.messages import DropReason, EpisodeKey, Trajectory

FAILURES = (DropReason.ENV_ERROR, DropReason.ENGINE_ERROR, DropReason.ACTOR_LOST)
"""Reasons that somebody has to look into."""

FIRST_EPISODES = 64
"""How many of the first training, or held-out, episodes may fail without one that does not."""

MAX_DETAIL = 300
"""Characters of what an episode that failed says."""


class NothingPlayable(RuntimeError):
    """Not one of the first episodes could be played: the run would go on for ever without an update."""


@dataclass
class GroupBuffer:
    """`filter_groups`: groups that teach nothing, their returns being all equal, are dropped, too (Yu et al. 2025, DAPO, arXiv 2503.14476,
    section 3.2); `settings` say what is compared."""

    group_size: int
    filter_groups: bool = False
    settings: LearnerSection = field(default_factory=LearnerSection)
    next_group: int = 0  # all groups below have left
    failures: dict[str, str] = field(default_factory=dict)
    """Why episodes failed: reason -> the first one, and what it says."""
    _first_group: int = 0  # of training, since the start or the resume
    _first_evaluation: int | None = None
    _first_failures: dict[bool, Counter] = field(default_factory=lambda: {False: Counter(), True: Counter()})
    _open: dict[int, dict[int, Trajectory]] = field(default_factory=dict)
    _batch: list[list[Trajectory]] = field(default_factory=list)  # groups that wait for their batch to fill
    _batch_groups: list[int] = field(default_factory=list)
    _evaluations: dict[int, dict[int, Trajectory]] = field(default_factory=dict)
    _evaluations_done: set[int] = field(default_factory=set)
    _dropped: dict[int, Counter] = field(default_factory=dict)  # group -> what of it was dropped, as fields of telemetry

    def resume(self, next_group: int, dropped: Mapping[str, int]) -> None:
        """Go on behind the groups below `next_group`; `dropped`: what of them is still to be reported."""
        self.next_group = self._first_group = next_group
        self._dropped[next_group - 1] = Counter(dropped)

    def add(self, trajectory: Trajectory) -> bool:
        """Take it in; False if this episode is known already, by whatever attempt. One that was played all the same takes the place of one
        that the controller has cancelled."""
        key = trajectory.key
        if key.evaluation:
            if self._first_evaluation is None:
                self._first_evaluation = key.group
            if key.group in self._evaluations_done or key.member in self._evaluations.setdefault(key.group, {}):
                return False
            self._evaluations[key.group][key.member] = trajectory
        else:
            known = self._open.get(key.group, {}).get(key.member)
            replaces = known is not None and known.dropped is DropReason.CANCELLED and trajectory.dropped is None
            if key.group < self.next_group or (known is not None and not replaces):
                return False
            if replaces:
                self._drop(key.group, DropReason.CANCELLED, [known], -1)
            self._open.setdefault(key.group, {})[key.member] = trajectory
        if trajectory.dropped is not None:
            self._drop(key.group, trajectory.dropped, [trajectory])
            if trajectory.dropped in FAILURES:
                self._note_failure(trajectory)
                self.failures.setdefault(trajectory.dropped, f"{key.id}: {' '.join(trajectory.detail.split())[:MAX_DETAIL]}")
        return True

    def check_playable(self) -> None:
        """Raises NothingPlayable when all of the first episodes have failed: the first by number, since those that fail arrive first."""
        for counts in self._first_failures.values():
            if counts.total() < FIRST_EPISODES:
                continue
            counted = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
            said = "; ".join(f"{reason}: episode {words}" for reason, words in self.failures.items() if reason in counts)
            raise NothingPlayable(
                f"none of the first {FIRST_EPISODES} episodes could be played ({counted}), so that nothing would ever be learned; "
                f"{said}. Mend that and start again; `python run.py play` plays one episode at the terminal"
            )

    def _note_failure(self, trajectory: Trajectory) -> None:
        key = trajectory.key
        if key.evaluation:
            is_first = key.group == self._first_evaluation and key.member < FIRST_EPISODES
        else:
            is_first = (key.group - self._first_group) * self.group_size + key.member < FIRST_EPISODES
        if is_first:
            self._first_failures[key.evaluation][trajectory.dropped] += 1

    def advance(self) -> list[int]:
        """Move complete groups, in order, to the batch; returns those that are dropped instead."""
        unusable = []
        while len(members := self._open.get(self.next_group, {})) == self.group_size:
            group = self.next_group
            played = [members[m] for m in sorted(members) if members[m].dropped is None]
            uninformative = self.filter_groups and not informative(played, self.settings)
            if len(played) >= 2 and not uninformative:
                self._batch.append(played)
                self._batch_groups.append(group)
            else:
                unusable.append(group)
                # A single one has nothing to be compared with.
                reason = DropReason.UNINFORMATIVE if len(played) >= 2 else DropReason.CANCELLED
                self._drop(group, reason, played)
            del self._open[group]
            self.next_group += 1
        return unusable

    def _drop(self, group: int, reason: DropReason, episodes: Sequence[Trajectory], sign: int = 1) -> None:
        """Its kept tokens are wasted; those of rejected attempts are counted where they are rejected. `sign` -1 takes it back."""
        counts = self._dropped.setdefault(group, Counter())
        counts[f"dropped_{reason}"] += sign * len(episodes)
        counts["wasted_dropped"] += sign * sum(turn.kept.length for episode in episodes for turn in episode.turns)

    def dropped(self) -> Counter:
        """What was dropped, as fields of telemetry, of groups that have left for good since `take_dropped`: a run that is resumed from
        `oldest_kept` sees the others again."""
        return sum((counts for group, counts in self._dropped.items() if group < self.oldest_kept()), Counter())

    def take_dropped(self) -> Counter:
        """The same, to be reported now."""
        taken = self.dropped()
        self._dropped = {group: counts for group, counts in self._dropped.items() if group >= self.oldest_kept()}
        return taken

    def take(self, groups: int) -> tuple[list[int], list[list[Trajectory]]] | None:
        """The next batch of `groups` groups (numbers, trajectories), or None while there are too few."""
        if len(self._batch) < groups:
            return None
        taken = self._batch_groups[:groups], self._batch[:groups]
        del self._batch_groups[:groups], self._batch[:groups]
        return taken

    def take_evaluation(self, evaluation: int, episodes: int) -> list[Trajectory] | None:
        """All trajectories of an evaluation, or None while some are missing."""
        members = self._evaluations.get(evaluation, {})
        if len(members) < episodes:
            return None
        del self._evaluations[evaluation]
        self._evaluations_done.add(evaluation)
        return [members[m] for m in sorted(members)]

    def evaluated(self, evaluation: int) -> int:
        """Episodes of an evaluation that have arrived."""
        return len(self._evaluations.get(evaluation, {}))

    def oldest_kept(self) -> int:
        """The lowest training group that has not been handed out in a batch: what a checkpoint must resume from."""
        return self._batch_groups[0] if self._batch_groups else self.next_group

    def received(self) -> list[EpisodeKey]:
        """Training episodes that are here and not yet handed out."""
        waiting = [t.key for group in self._batch for t in group]
        return waiting + [t.key for members in self._open.values() for t in members.values()]

    def waiting(self) -> int:
        """Trajectories that are here and not yet handed out."""
        return sum(map(len, self._batch)) + sum(map(len, self._open.values()))

    def cancel_rest(self) -> Counter:
        """The run is over: what is here and was not trained on counts as cancelled. All that was dropped since `take_dropped`."""
        played = [t for group in self._batch for t in group]
        played += [t for members in self._open.values() for t in members.values() if t.dropped is None]
        self._drop(self.next_group, DropReason.CANCELLED, played)
        self._batch.clear()
        self._batch_groups.clear()
        self._open.clear()
        return sum(self._dropped.values(), Counter())
