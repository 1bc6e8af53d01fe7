"""Trajectories into groups, groups into batches, oldest first. A state machine without IO.

A group is *open* until each of its G members has arrived, played or dropped. Then it is *complete*,
and waits for its batch, if at least two members are left to compare (and differ, where that is
asked for); else it is dropped at once. A batch is the lowest complete groups. It is taken as long
as no group that is left behind has then been passed by more than `window` later ones
(controller/admission.py says what that bounds); with 0, groups are trained on in order of
admission. Evaluations are kept apart and leave when complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from config import LearnerSection
from learner.data.samples import informative
from protocol.messages import DropReason, EpisodeKey, Trajectory

FAILURES = (DropReason.ENV_ERROR, DropReason.ENGINE_ERROR, DropReason.ACTOR_LOST)
"""Reasons that somebody has to look into."""

FIRST_EPISODES = 64
"""How many of the first training, or held-out, episodes may fail without one that does not."""

MAX_DETAIL = 300
"""Characters of what an episode that failed says."""


class NothingPlayable(RuntimeError):
    """Not one of the first episodes could be played: the run would go on for ever without an
    update."""


class Awaited(NamedTuple):
    """A group that is not complete, and who is missing."""

    group: int
    missing: list[int]  # members


@dataclass
class GroupBuffer:
    """`filter_groups`: groups that teach nothing, their returns being all equal, are dropped, too
    (Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.2); `settings` say what is compared."""

    group_size: int
    filter_groups: bool = False
    settings: LearnerSection = field(default_factory=LearnerSection)
    window: int = 0  # most groups that may be trained on before one that was admitted earlier
    next_group: int = 0  # the lowest that has not left
    trained_ahead: set[int] = field(default_factory=set)
    """Groups above `next_group` that were handed out in a batch."""
    dropped_ahead: set[int] = field(default_factory=set)
    """Groups above `next_group` that were dropped."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why episodes failed: reason -> the first one, and what it says."""
    _first_group: int = 0  # of training, since the start or the resume
    _first_evaluation: int | None = None
    _first_failures: dict[bool, Counter] = field(
        default_factory=lambda: {False: Counter(), True: Counter()}
    )
    drops: Counter = field(default_factory=Counter)
    """How many episodes were dropped so far: reason -> number."""
    _open: dict[int, dict[int, Trajectory]] = field(default_factory=dict)
    _complete: dict[int, list[Trajectory]] = field(
        default_factory=dict
    )  # groups that wait for their batch: who has played
    _evaluations: dict[int, dict[int, Trajectory]] = field(default_factory=dict)
    _evaluations_done: set[int] = field(default_factory=set)
    _dropped: dict[int, Counter] = field(
        default_factory=dict
    )  # group -> what of it was dropped, as fields of telemetry

    def resume(
        self,
        next_group: int,
        dropped: Mapping[str, int],
        trained_ahead: Collection[int] = (),
        dropped_ahead: Collection[int] = (),
    ) -> None:
        """Go on where a checkpoint was written; `dropped`: what of the groups that have left is
        still to be reported."""
        self.next_group = self._first_group = next_group
        self.trained_ahead, self.dropped_ahead = set(trained_ahead), set(dropped_ahead)
        self._dropped[next_group - 1] = Counter(dropped)

    def has_left(self, group: int) -> bool:
        """Whether a training group was handed out in a batch, or dropped."""
        return group < self.next_group or group in self.trained_ahead or group in self.dropped_ahead

    def left_ahead(self) -> list[int]:
        """The groups above `next_group` that have left."""
        return sorted(self.trained_ahead | self.dropped_ahead)

    def add(self, trajectory: Trajectory) -> bool:
        """Take it in; False if this episode is known already, by whatever attempt.

        One that was played all the same takes the place of one that the controller has cancelled.
        """
        key = trajectory.key
        if key.evaluation:
            if self._first_evaluation is None:
                self._first_evaluation = key.group
            if key.group in self._evaluations_done or key.member in self._evaluations.setdefault(
                key.group, {}
            ):
                return False
            self._evaluations[key.group][key.member] = trajectory
        else:
            known = self._open.get(key.group, {}).get(key.member)
            replaces = (
                known is not None
                and known.drop_reason is DropReason.CANCELLED
                and trajectory.drop_reason is None
            )
            if (
                self.has_left(key.group)
                or key.group in self._complete
                or (known is not None and not replaces)
            ):
                return False
            if replaces:
                self._drop(key.group, DropReason.CANCELLED, [known], -1)
            self._open.setdefault(key.group, {})[key.member] = trajectory
        if trajectory.drop_reason is not None:
            self._drop(key.group, trajectory.drop_reason, [trajectory])
            if trajectory.drop_reason in FAILURES:
                self._note_failure(trajectory)
                self.failures.setdefault(
                    trajectory.drop_reason,
                    f"{key.id}: {' '.join(trajectory.detail.split())[:MAX_DETAIL]}",
                )
        return True

    def check_playable(self) -> None:
        """Raises NothingPlayable when all of the first episodes have failed: the first by number,
        since those that fail arrive first."""
        for counts in self._first_failures.values():
            if counts.total() < FIRST_EPISODES:
                continue
            counted = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
            said = "; ".join(
                f"{reason}: episode {words}"
                for reason, words in self.failures.items()
                if reason in counts
            )
            raise NothingPlayable(
                f"none of the first {FIRST_EPISODES} episodes could be played ({counted}), so "
                "that nothing would ever be learned; "
                f"{said}. Mend that and start again; `python run.py play` plays one episode at "
                "the terminal"
            )

    def _note_failure(self, trajectory: Trajectory) -> None:
        key = trajectory.key
        if key.evaluation:
            is_first = key.group == self._first_evaluation and key.member < FIRST_EPISODES
        else:
            is_first = (
                key.group - self._first_group
            ) * self.group_size + key.member < FIRST_EPISODES
        if is_first:
            self._first_failures[key.evaluation][trajectory.drop_reason] += 1

    def advance(self) -> list[int]:
        """Set groups that have become complete aside for batches; returns those that are dropped
        instead."""
        unusable = []
        for group in sorted(
            group for group, members in self._open.items() if len(members) == self.group_size
        ):
            members = self._open.pop(group)
            played = [members[m] for m in sorted(members) if members[m].drop_reason is None]
            uninformative = self.filter_groups and not informative(played, self.settings)
            if len(played) >= 2 and not uninformative:
                self._complete[group] = played
                continue
            # A single one has nothing to be compared with.
            reason = DropReason.UNINFORMATIVE if len(played) >= 2 else DropReason.CANCELLED
            self._drop(group, reason, played)
            unusable.append(group)
        self.dropped_ahead.update(unusable)
        self._move_on()
        return unusable

    def _move_on(self) -> None:
        while self.next_group in self.trained_ahead or self.next_group in self.dropped_ahead:
            self.trained_ahead.discard(self.next_group)
            self.dropped_ahead.discard(self.next_group)
            self.next_group += 1

    def _drop(
        self, group: int, reason: DropReason, episodes: Sequence[Trajectory], sign: int = 1
    ) -> None:
        """Its kept tokens are wasted; those of rejected attempts are counted where they are
        rejected. `sign` -1 takes it back."""
        counts = self._dropped.setdefault(group, Counter())
        counts[f"dropped_{reason}"] += sign * len(episodes)
        self.drops[reason] += sign * len(episodes)
        counts["wasted_dropped"] += sign * sum(
            turn.kept.length for episode in episodes for turn in episode.turns
        )

    def dropped(self) -> Counter:
        """What was dropped, as fields of telemetry, of groups that have left since `take_dropped`:
        a run that is resumed sees the others again."""
        return sum(
            (counts for group, counts in self._dropped.items() if self.has_left(group)), Counter()
        )

    def take_dropped(self) -> Counter:
        """The same, to be reported now."""
        taken = self.dropped()
        self._dropped = {
            group: counts for group, counts in self._dropped.items() if not self.has_left(group)
        }
        return taken

    def take(self, groups: int) -> tuple[list[int], list[list[Trajectory]]] | None:
        """The next batch of `groups` groups (numbers, trajectories); None while there are too few,
        or an earlier one has to come first."""
        chosen = sorted(self._complete)[:groups]
        if len(chosen) < groups or self._passed(chosen) > self.window:
            return None
        return chosen, [self.take_group(group) for group in chosen]

    def take_group(self, group: int) -> list[Trajectory] | None:
        """A complete group by its number, whatever is before it; None if there is none of that
        number."""
        played = self._complete.pop(group, None)
        if played is not None:
            self.trained_ahead.add(group)
            self._move_on()
        return played

    def _passed(self, chosen: Collection[int]) -> int:
        """How many later groups have been trained on before the lowest group that is left behind,
        once these are; others were passed by no more of them."""
        behind = self._lowest_outside(chosen)
        if behind > max(chosen):
            # these pass nobody: in order of admission, whatever the window was before a resume
            return 0
        return sum(group > behind for group in (*self.trained_ahead, *chosen))

    def _lowest_outside(self, groups: Collection[int]) -> int:
        return next(
            group
            for group in count(self.next_group)
            if not self.has_left(group) and group not in groups
        )

    def complete(self) -> int:
        """How many groups wait for their batch."""
        return len(self._complete)

    def awaited(self) -> Awaited:
        """The lowest group that is not complete, and the members that have not arrived."""
        group = self._lowest_outside(self._complete)
        here = self._open.get(group, {})
        return Awaited(group, [member for member in range(self.group_size) if member not in here])

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

    def received(self) -> list[EpisodeKey]:
        """Training episodes that are here and not yet handed out."""
        waiting = [t.key for played in self._complete.values() for t in played]
        return waiting + [t.key for members in self._open.values() for t in members.values()]

    def waiting(self) -> int:
        """Trajectories that are here and not yet handed out."""
        return sum(map(len, self._complete.values())) + sum(map(len, self._open.values()))

    def cancel_remaining(self) -> Counter:
        """The run is over: what is here and was not trained on counts as cancelled.

        All that was dropped since `take_dropped`.
        """
        played = [t for group in self._complete.values() for t in group]
        played += [
            t for members in self._open.values() for t in members.values() if t.drop_reason is None
        ]
        self._drop(self.next_group, DropReason.CANCELLED, played)
        self._complete.clear()
        self._open.clear()
        return sum(self._dropped.values(), Counter())
