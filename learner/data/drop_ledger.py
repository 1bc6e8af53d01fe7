"""Accounts of dropped episodes: how many, why, and the tokens that they wasted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence

from config.options import this_command
from protocol.messages import DropReason, EpisodeKey, Trajectory

FIRST_EPISODES = 64
"""How many of the first training, or held-out, episodes may fail without one that does not."""

MAX_DETAIL = 300
"""Characters that are kept of what an episode that failed says."""


class NothingPlayable(RuntimeError):
    """None of the first episodes could be played: the run would never make an update."""


class DropLedger:
    """Counts what was dropped, group by group, until an update or a checkpoint reports it.

    The counts of a group are fields of telemetry. A run that is resumed sees the groups that have
    not left the buffer again, so only those of closed groups are reported.
    """

    def __init__(self) -> None:
        self.totals: Counter[DropReason] = Counter()
        """How many episodes were dropped so far, by reason."""
        self.failures: dict[str, str] = {}
        """Reason in FAILURES -> what its first episode says."""
        self._by_group: dict[int, Counter[str]] = {}

    def restore(self, group: int, counts: Mapping[str, int]) -> None:
        """Take over counts of a checkpoint that are not reported, under a closed group's number."""
        self._by_group[group] = Counter(counts)

    def record(self, group: int, reason: DropReason, episodes: Sequence[Trajectory]) -> None:
        """Count dropped episodes of a group.

        Their kept tokens are wasted; those of rejected responses are counted where they are
        rejected.
        """
        self._add(group, reason, len(episodes), sum(map(_kept_tokens, episodes)))

    def revoke(self, group: int, reason: DropReason, episode: Trajectory) -> None:
        """Take back that an episode was dropped: it was played after all."""
        self._add(group, reason, -1, -_kept_tokens(episode))

    def record_failure(self, reason: DropReason, episode: Trajectory) -> None:
        """Remember what an episode says, if it is the first that failed for this reason."""
        words = " ".join(episode.detail.split())[:MAX_DETAIL]
        self.failures.setdefault(reason, f"{episode.key.id}: {words}")

    def sum_of(self, groups: Container[int]) -> Counter[str]:
        """Return what was dropped of these groups since `pop_sum_of`."""
        counts = (counts for group, counts in self._by_group.items() if group in groups)
        return sum(counts, Counter())

    def pop_sum_of(self, groups: Container[int]) -> Counter[str]:
        """Return the same, which is reported now, and begin anew."""
        counts = self.sum_of(groups)
        self._by_group = {
            group: counts for group, counts in self._by_group.items() if group not in groups
        }
        return counts

    def sum_of_all(self) -> Counter[str]:
        """Return what was dropped of all groups since `pop_sum_of`."""
        return sum(self._by_group.values(), Counter())

    def _add(self, group: int, reason: DropReason, episodes: int, tokens: int) -> None:
        counts = self._by_group.setdefault(group, Counter())
        counts[f"dropped_{reason}"] += episodes
        counts["wasted_dropped"] += tokens
        self.totals[reason] += episodes


class FirstEpisodes:
    """Notices a run none of whose first episodes can be played.

    The first by number are looked at, since those that fail arrive first.
    """

    def __init__(self, group_size: int) -> None:
        self.first_group = 0  # of training, since the start or the resume
        self._group_size = group_size
        self._first_evaluation: int | None = None
        self._failed_training: Counter[DropReason] = Counter()
        self._failed_evaluation: Counter[DropReason] = Counter()

    def note_arrival(self, key: EpisodeKey) -> None:
        """Note which evaluation is the first."""
        if key.evaluation and self._first_evaluation is None:
            self._first_evaluation = key.group

    def note_failure(self, reason: DropReason, key: EpisodeKey) -> None:
        """Count an episode that failed, if it is one of the first."""
        if self._is_first(key):
            self._counts_of(key)[reason] += 1

    def check_playable(self, failures: Mapping[str, str]) -> None:
        """Raise NothingPlayable when all of the first episodes have failed.

        `failures`: what the first episode of each reason says.
        """
        for counts in (self._failed_training, self._failed_evaluation):
            if counts.total() >= FIRST_EPISODES:
                raise NothingPlayable(_describe_failures(counts, failures))

    def _counts_of(self, key: EpisodeKey) -> Counter[DropReason]:
        if key.evaluation:
            return self._failed_evaluation
        return self._failed_training

    def _is_first(self, key: EpisodeKey) -> bool:
        if key.evaluation:
            return key.group == self._first_evaluation and key.member < FIRST_EPISODES
        number = (key.group - self.first_group) * self._group_size + key.member
        return number < FIRST_EPISODES


def _describe_failures(counts: Counter[DropReason], failures: Mapping[str, str]) -> str:
    numbers = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
    reports = "; ".join(
        f"{reason}: episode {words}" for reason, words in failures.items() if reason in counts
    )
    return (
        f"none of the first {FIRST_EPISODES} episodes could be played ({numbers}), so that nothing "
        f"would ever be learned; {reports}. Mend that and start again; "
        f"`{this_command()} play` plays one episode at the terminal"
    )


def _kept_tokens(episode: Trajectory) -> int:
    return sum(turn.kept.length for turn in episode.turns)
