"""Who may play what, and when: slots bound staleness, leases bound the damage of a lost actor.

No IO, no clock.

A slot is taken when a group is admitted and given back when the group has been trained on *and* the
engines run the resulting weights, or when it was dropped. There are (S+1)*P slots. The learner
trains on the oldest complete groups, P an update, but leaves no group behind that more than W = U*P
later ones have passed (learner/data/groups.py; U is `learner.order_window`). Then no trained token
is older than S + U versions:

    Let g be admitted while the engines run version v, and be trained on in update u+1, so that its
    oldest token is u - v versions old. Updates v+1 ... u took (u-v)*P groups. Each of these was
    admitted before g, and held one of the (S+1)*P - 1 other slots at that moment, since the engines
    did not run its weights; or after g, and then it is one of the at most U*P that passed it. So
    (u-v)*P <= (S+1+U)*P - 1, and u - v <= S + U.

By the same count a group that was passed by nobody is at most S versions old. With slots taken from
(S+1)*P for the window the bound would be S, and the learner would wait as long as without one: a
group that is S versions old holds the others up, in whatever order they came. With S = 0 nothing
passes, all of a batch is admitted at once and nothing else until the engines have its weights.

An episode's life: pending -> leased -> ended. A lost actor's episodes are pending again, until
their leases are used up.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from controller.pace import Pace
from protocol.messages import EpisodeKey, Lease


@dataclass(frozen=True)
class AdmissionSettings:
    groups: int  # P
    group_size: int  # G
    max_staleness: int  # S
    max_leases: int
    seed: int
    train_size: int  # tasks in the training split
    held_out_size: int
    episode_seconds: float = inf  # the longest that a lease may last

    @property
    def slots(self) -> int:
        return (self.max_staleness + 1) * self.groups


def task_of_group(seed: int, group: int, size: int) -> int:
    """The training task that group number `group` plays: the same after every restart."""
    return random.Random(f"task/{seed}/{group}").randrange(size)


def episode_seed(seed: int, key: EpisodeKey) -> int:
    """Seed of everything random in an episode, 31 bits: the same for every lease of it."""
    return random.Random(f"episode/{seed}/{key.id}").getrandbits(31)


@dataclass
class _Holder:
    actor: bytes
    attempt: int
    since: float = 0.0  # of any clock


class Lapsed(NamedTuple):
    """A lease that is no longer in force."""

    key: EpisodeKey
    attempt: int
    actor: bytes


class Word(NamedTuple):
    """What an actor has said last."""

    heard: float  # by the clock of leases
    playing: Collection[tuple[EpisodeKey, int]]  # its leases (episode, attempt)


class InFlight(NamedTuple):
    """An episode that is being played."""

    key: EpisodeKey
    actor: bytes
    attempt: int  # the lease's number
    seconds: float  # since it was leased


@dataclass
class Admission:
    settings: AdmissionSettings
    next_group: int = 0
    holding: set[int] = field(default_factory=set)  # groups that hold a slot
    pending: deque[EpisodeKey] = field(default_factory=deque)  # training episodes to lease
    pending_evaluation: deque[EpisodeKey] = field(default_factory=deque)
    leased: dict[EpisodeKey, _Holder] = field(default_factory=dict)
    _awaiting: dict[int, list[int]] = field(
        default_factory=dict
    )  # version -> groups freed once it is applied
    _to_admit: int = 0
    _received: set[EpisodeKey] = field(
        default_factory=set
    )  # need not be played, of groups that are still to be admitted
    _left_early: set[int] = field(
        default_factory=set
    )  # groups that were trained on, or dropped, before they were admitted
    revoked: list[Lapsed] = field(default_factory=list)  # for those who must know
    _leased_to: dict[EpisodeKey, list[bytes]] = field(
        default_factory=dict
    )  # the actor of each attempt
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.settings.episode_seconds)

    # --- what the learner says

    def start(
        self,
        next_group: int,
        received: list[EpisodeKey],
        updates_left: int,
        left: Collection[int] = (),
    ) -> None:
        """The learner is ready: admission begins at `next_group`, without the groups that have
        `left`; members in `received` need not be played again. After a crash these may be of many
        more groups than there are slots: the learner has them all, and may be done with some before
        they are admitted here."""
        self.next_group = next_group
        self._to_admit = updates_left * self.settings.groups + len(left)
        self._left_early = set(left)
        self._received = set(received)
        self._admit()

    def trained(self, version: int, groups: list[int]) -> None:
        """These groups went into weights `version`, which no engine runs yet: their slots stay
        taken."""
        self._awaiting.setdefault(version, []).extend(groups)

    def applied(self, version: int) -> None:
        """Every engine runs `version`: what was trained into it, or into earlier versions, frees
        its slots."""
        for v in [v for v in self._awaiting if v <= version]:
            self._leave(self._awaiting.pop(v))
        self._admit()

    def dropped(self, groups: list[int]) -> None:
        """These groups will not be trained on; others take their place."""
        self._leave(groups)
        self._to_admit += len(groups)
        self._admit()

    def evaluate(self, evaluation: int, episodes: int) -> None:
        """Held-out tasks 0 ... episodes-1, one episode each, before any further training
        episode."""
        self.pending_evaluation.extend(
            EpisodeKey(evaluation, task, True) for task in range(episodes)
        )

    def evaluating(self) -> bool:
        """Whether an episode of an evaluation has not ended."""
        return bool(self.pending_evaluation) or any(key.evaluation for key in self.leased)

    def end_evaluation(self, evaluation: int) -> None:
        """Nobody waits for this evaluation any more: its leases lapse."""
        self.pending_evaluation = deque(
            key for key in self.pending_evaluation if key.group != evaluation
        )
        for key in [key for key in self.leased if key.evaluation and key.group == evaluation]:
            self._revoke(key)

    def finish(self) -> list[EpisodeKey]:
        """No training follows: the training episodes that have not ended, cancelled."""
        cancelled = [*self.pending, *(key for key in self.leased if not key.evaluation)]
        self._to_admit = 0
        self.pending.clear()
        for key in cancelled:
            self._revoke(key)
        return cancelled

    # --- what actors do

    def lease(self, actor: bytes, now: float = 0.0) -> Lease | None:
        """The next episode for this actor, or None if there is nothing to play now.

        `now`: for `overdue`, seconds of any clock.
        """
        queue = self.pending_evaluation or self.pending
        if not queue:
            return None
        key = queue.popleft()
        attempt = len(self._leased_to.setdefault(key, []))
        self._leased_to[key].append(actor)
        self.leased[key] = _Holder(actor, attempt, now)
        s = self.settings
        task = key.member if key.evaluation else task_of_group(s.seed, key.group, s.train_size)
        return Lease(
            key=key,
            lease_attempt=attempt,
            split="held_out" if key.evaluation else "train",
            task_index=task % s.held_out_size if key.evaluation else task,
            seed=episode_seed(s.seed, key),
        )

    def holds(self, key: EpisodeKey, attempt: int, actor: bytes) -> bool:
        """Whether this lease of the actor's is still in force."""
        holder = self.leased.get(key)
        return holder is not None and (holder.actor, holder.attempt) == (actor, attempt)

    def ended(self, key: EpisodeKey, actor: bytes, attempt: int, now: float = 0.0) -> bool:
        """The learner has the episode, from whichever lease: nobody needs to play it any more.

        False, and nothing happens, if the actor never had that lease. `now` by the clock of
        `lease`.
        """
        had = self._leased_to.get(key, [])
        if not 0 <= attempt < len(had) or had[attempt] != actor:
            return False
        del self._leased_to[key]
        if self.holds(key, attempt, actor):
            self._pace.add(now - self.leased.pop(key).since)
        else:
            self._revoke(key)
        for queue in (self.pending, self.pending_evaluation):
            if key in queue:
                queue.remove(key)
        return True

    def actor_lost(self, actor: bytes) -> list[EpisodeKey]:
        """Its episodes go back to the front of the queue; returned are those whose leases are used
        up."""
        return self._take_back(
            [key for key, holder in self.leased.items() if holder.actor == actor]
        )

    def overdue(self, now: float) -> list[EpisodeKey]:
        """Episodes that take too long (controller/pace.py) go back likewise: whoever has them
        lives, and does not bring them to an end."""
        late = [
            (key, holder)
            for key, holder in self.leased.items()
            if now - holder.since > self._pace.limit_seconds(holder.attempt)
        ]
        for _, holder in late:
            if (
                holder.attempt == 0
            ):  # once an episode: one that never ends is not to make its own limit longer
                self._pace.add(now - holder.since)
        return self._take_back([key for key, _ in late])

    def oldest(self, now: float, most: int) -> list[InFlight]:
        """The episodes that have been played for longest, at most so many: whom everybody may be
        waiting for."""
        playing = [
            InFlight(key, holder.actor, holder.attempt, now - holder.since)
            for key, holder in self.leased.items()
        ]
        return sorted(playing, key=lambda episode: -episode.seconds)[:most]

    def unknown(self, words: Mapping[bytes, Word], seconds: float) -> list[EpisodeKey]:
        """Episodes that an actor does not speak of, though it was leased them more than `seconds`
        before its last word, go back likewise: the lease was lost on its way, or with the process
        that had the actor's name before."""
        lost = []
        for key, holder in self.leased.items():
            word = words.get(holder.actor)
            if word is None or holder.since >= word.heard - seconds:
                continue
            if (key, holder.attempt) not in word.playing:
                lost.append(key)
        return self._take_back(lost)

    def _take_back(self, keys: list[EpisodeKey]) -> list[EpisodeKey]:
        given_up = []
        for key in keys:
            self._revoke(key)
            if len(self._leased_to[key]) >= self.settings.max_leases:
                del self._leased_to[key]
                given_up.append(key)
            else:
                (self.pending_evaluation if key.evaluation else self.pending).appendleft(key)
        return given_up

    def _revoke(self, key: EpisodeKey) -> None:
        if (holder := self.leased.pop(key, None)) is not None:
            self.revoked.append(Lapsed(key, holder.attempt, holder.actor))

    def _leave(self, groups: list[int]) -> None:
        self.holding.difference_update(groups)
        self._left_early.update(group for group in groups if group >= self.next_group)

    def _admit(self) -> None:
        while self._to_admit > 0 and len(self.holding) < self.settings.slots:
            group = self.next_group
            self.next_group += 1
            self._to_admit -= 1
            keys = [EpisodeKey(group, member) for member in range(self.settings.group_size)]
            if group in self._left_early:
                self._left_early.remove(group)
            else:
                self.holding.add(group)
                self.pending.extend(key for key in keys if key not in self._received)
            self._received.difference_update(keys)
