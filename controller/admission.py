"""Admission decides who may play what, and when; it has no IO and no clock.

Slots bound staleness, and leases the damage of a lost actor.

A slot is taken when a group is admitted and given back when the group has been trained on *and* the
engines run the resulting weights, or when it was dropped. There are (S+1)*P slots. The learner
trains on the oldest complete groups, P an update, but leaves no group behind that more than U*P
later ones have passed (learner/data/groups.py). S is `learner.max_staleness`, and U is
`learner.order_window`. Then no trained token is older than S + U versions:

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
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from config import EvaluationPlan
from config.evaluation import ONLY_SET
from controller.curriculum import Curriculum
from protocol.messages import EpisodeKey, Lease, TaskOutcome, TurnRequest

CLAIMS_BELIEVED = 5
"""Heartbeats in which an actor claims more room than we know of, until it is believed."""

PACE_FACTOR = 4.0
"""An episode is slow if it takes so many times as long as 95 % of those that came to an end."""
PACE_EPISODES = 20
"""Episodes that must have ended before their pace is known."""
PACE_WINDOW = 256
"""Number of the latest episodes whose pace counts."""
MIN_LIMIT_SECONDS = 60.0
"""The shortest limit: engines that stand still for a moment make all episodes longer."""


@dataclass(frozen=True)
class AdmissionSettings:
    groups: int  # P
    group_size: int  # G
    max_staleness: int  # S
    max_leases: int
    seed: int
    train_size: int  # tasks in the training split
    held_out_size: int
    evaluation: EvaluationPlan
    episode_seconds: float = inf  # the longest that a lease may last
    curriculum_half_life: float = 0.0  # groups; 0: tasks are drawn without a curriculum

    @property
    def slots(self) -> int:
        return (self.max_staleness + 1) * self.groups


def task_of_group(seed: int, group: int, size: int) -> int:
    """The training task that group `group` plays without a curriculum, after restarts too."""
    return random.Random(f"task/{seed}/{group}").randrange(size)


def episode_seed(seed: int, key: EpisodeKey) -> int:
    """Seed of everything random in an episode, 31 bits: the same for every lease of it."""
    return random.Random(f"episode/{seed}/{key.id}").getrandbits(31)


@dataclass
class Pace:
    """How long an episode may take before another actor is given it.

    The environment's own pace decides.

    Each further lease of the episode has twice the time of the one before: what needs it gets it,
    and an episode that never ends is given up after five leases of 31 limits together, instead of
    five times `actor.episode_seconds`. What was taken back counts, too, for as long as it had
    lasted: if everything becomes slow, the limit follows.
    """

    longest_seconds: float
    """The limit while nothing is known, and the highest one (`actor.episode_seconds`)."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=PACE_WINDOW))

    def add(self, seconds: float) -> None:
        """Take note of an episode that ended after so long, or was taken back then."""
        self._seconds.append(seconds)

    def limit_seconds(self, lease_attempt: int) -> float:
        """How long the lease number `lease_attempt` of an episode may last."""
        if len(self._seconds) < PACE_EPISODES:
            return self.longest_seconds
        usual = sorted(self._seconds)[int(0.95 * len(self._seconds))]
        limit = max(MIN_LIMIT_SECONDS, PACE_FACTOR * usual) * 2**lease_attempt
        return min(self.longest_seconds, limit)


@dataclass
class _Holder:
    actor: bytes
    lease_attempt: int
    since: float = 0.0  # of any clock


class LapsedLease(NamedTuple):
    """A lease that is no longer in force."""

    key: EpisodeKey
    lease_attempt: int
    actor: bytes


class ActorReport(NamedTuple):
    """The leases that an actor plays, by its last word."""

    heard: float  # by the clock of leases
    playing: Collection[tuple[EpisodeKey, int]]  # (episode, number of the lease)


class InFlight(NamedTuple):
    """An episode that is being played."""

    key: EpisodeKey
    actor: bytes
    lease_attempt: int
    seconds: float  # since it was leased


@dataclass
class Admission:
    """The state of all groups and episodes that are admitted and have not ended."""

    settings: AdmissionSettings
    next_group: int = 0
    holding: set[int] = field(default_factory=set)
    """Groups that hold a slot."""
    pending: deque[EpisodeKey] = field(default_factory=deque)
    """Training episodes to lease."""
    pending_evaluation: deque[EpisodeKey] = field(default_factory=deque)
    leased: dict[EpisodeKey, _Holder] = field(default_factory=dict)
    revoked: list[LapsedLease] = field(default_factory=list)
    """Leases that lapsed, for those who must know."""
    curriculum: Curriculum = field(init=False)
    _tasks_received: dict[int, int] = field(default_factory=dict)
    """Task of each group with a member in `_received`, by the learner's word."""
    _awaiting: dict[int, list[int]] = field(default_factory=dict)
    """Groups that are freed once a version is applied."""
    _to_admit: int = 0
    _received: set[EpisodeKey] = field(default_factory=set)
    """Episodes that need not be played, of groups that are still to be admitted."""
    _consumed_early: set[int] = field(default_factory=set)
    """Groups that were trained on, or dropped, before they were admitted."""
    _leased_to: dict[EpisodeKey, list[bytes]] = field(default_factory=dict)
    """The actor of each lease of an episode, by the lease's number."""
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.settings.episode_seconds)
        self.curriculum = Curriculum(self.settings.curriculum_half_life)

    # --- what the learner says

    def start(
        self,
        next_group: int,
        received: list[EpisodeKey],
        updates_remaining: int,
        consumed_groups: Collection[int] = (),
        tasks: Mapping[int, int] | None = None,
    ) -> None:
        """Begin to admit at `next_group`: the learner is ready.

        `consumed_groups` are not admitted, and members in `received` need not be played
        again; `tasks` are those of their groups. After a crash these may be many more groups than
        there are slots: the learner has them all, and may be done with some before they are
        admitted here.
        """
        self.next_group = next_group
        self._to_admit = updates_remaining * self.settings.groups + len(consumed_groups)
        self._consumed_early = set(consumed_groups)
        self._received = set(received)
        self._tasks_received = dict(tasks or {})
        self._admit()

    def note_outcomes(self, outcomes: Sequence[TaskOutcome]) -> None:
        """Take note of what came of groups, for the tasks of those that are admitted later."""
        self.curriculum.note(outcomes)

    def hold_until_applied(self, version: int, groups: list[int]) -> None:
        """Take note that these groups went into weights `version`, which no engine runs yet.

        Their slots stay taken.
        """
        self._awaiting.setdefault(version, []).extend(groups)

    def free_slots(self, version: int) -> None:
        """Free the slots of what was trained into `version` or earlier ones: all engines run it."""
        for applied in [v for v in self._awaiting if v <= version]:
            self._leave(self._awaiting.pop(applied))
        self._admit()

    def replace_dropped(self, groups: list[int]) -> None:
        """Admit others in place of these groups, which will not be trained on."""
        self._leave(groups)
        self._to_admit += len(groups)
        self._admit()

    def evaluate(self, evaluation: int, episodes: int) -> None:
        """Admit the episodes 0 ... episodes-1 of an evaluation.

        They come before any further training episode.
        """
        self.pending_evaluation.extend(
            EpisodeKey(evaluation, task, True) for task in range(episodes)
        )

    def evaluation_episodes_left(self) -> int:
        """Count the episodes of evaluations that have not ended."""
        return len(self.pending_evaluation) + sum(key.evaluation for key in self.leased)

    def evaluations_under_way(self) -> list[int]:
        """List the evaluations with an episode that has not ended."""
        leased = [key for key in self.leased if key.evaluation]
        return sorted({key.group for key in (*self.pending_evaluation, *leased)})

    def end_evaluation(self, evaluation: int) -> list[EpisodeKey]:
        """Let the leases of an evaluation lapse: nobody waits for it any more.

        Returns its episodes that had not ended.
        """
        pending = [key for key in self.pending_evaluation if key.group == evaluation]
        leased = [key for key in self.leased if key.evaluation and key.group == evaluation]
        self.pending_evaluation = deque(
            key for key in self.pending_evaluation if key.group != evaluation
        )
        for key in leased:
            self._revoke(key)
        return [*pending, *leased]

    def finish(self) -> list[EpisodeKey]:
        """Cancel and return the training episodes that have not ended: no training follows."""
        canceled = [*self.pending, *(key for key in self.leased if not key.evaluation)]
        self._to_admit = 0
        self.pending.clear()
        for key in canceled:
            self._revoke(key)
        return canceled

    # --- what actors do

    def lease(self, actor: bytes, now: float = 0.0) -> Lease | None:
        """Lease the next episode to this actor; None if there is nothing to play now.

        `now`: for `take_back_overdue`, seconds of any clock.
        """
        queue = self.pending_evaluation or self.pending
        if not queue:
            return None
        key = queue.popleft()
        actors = self._leased_to.setdefault(key, [])
        lease_attempt = len(actors)
        actors.append(actor)
        self.leased[key] = _Holder(actor, lease_attempt, now)
        split, task, evaluation_set = self._task_of(key)
        return Lease(
            key=key,
            lease_attempt=lease_attempt,
            split=split,
            task_index=task,
            seed=episode_seed(self.settings.seed, key),
            evaluation_set=evaluation_set,
        )

    def has_lease(self, key: EpisodeKey, lease_attempt: int, actor: bytes) -> bool:
        """True while this lease of the actor's is in force."""
        holder = self.leased.get(key)
        if holder is None:
            return False
        return holder.actor == actor and holder.lease_attempt == lease_attempt

    def allows(self, actor: bytes, request: TurnRequest) -> bool:
        """True while the actor has a lease in force for the turn that it asks for."""
        return self.has_lease(request.key, request.lease_attempt, actor)

    def end_episode(
        self, key: EpisodeKey, actor: bytes, lease_attempt: int, now: float = 0.0
    ) -> bool:
        """Take an episode out of play: the learner has it, from whichever lease.

        False, and nothing happens, if the actor never had that lease. `now` by the clock of
        `lease`.
        """
        actors = self._leased_to.get(key, [])
        if not 0 <= lease_attempt < len(actors) or actors[lease_attempt] != actor:
            return False
        del self._leased_to[key]
        if self.has_lease(key, lease_attempt, actor):
            self._pace.add(now - self.leased.pop(key).since)
        else:
            self._revoke(key)
        for queue in (self.pending, self.pending_evaluation):
            if key in queue:
                queue.remove(key)
        return True

    def take_back_from(self, actor: bytes) -> list[EpisodeKey]:
        """Put the episodes of a lost actor back to the front of the queue.

        Returns those whose leases are used up.
        """
        return self._take_back(
            [key for key, holder in self.leased.items() if holder.actor == actor]
        )

    def take_back_overdue(self, now: float) -> list[EpisodeKey]:
        """Put episodes that take too long (`Pace`) back to the front of the queue.

        Whoever has them lives, and does not bring them to an end. Returns those whose leases are
        used up.
        """
        overdue = [
            (key, holder)
            for key, holder in self.leased.items()
            if now - holder.since > self._pace.limit_seconds(holder.lease_attempt)
        ]
        for _, holder in overdue:
            # Once an episode: one that never ends is not to make its own limit longer.
            if holder.lease_attempt == 0:
                self._pace.add(now - holder.since)
        return self._take_back([key for key, _ in overdue])

    def take_back_unknown(
        self, reports: Mapping[bytes, ActorReport], seconds: float
    ) -> list[EpisodeKey]:
        """Put episodes that an actor does not speak of back to the front of the queue.

        It was leased them more than `seconds` before its last report: the lease was lost on its
        way, or with the process that had the actor's name before. Returns those whose leases are
        used up.
        """
        lost = []
        for key, holder in self.leased.items():
            report = reports.get(holder.actor)
            if report is None or holder.since >= report.heard - seconds:
                continue
            if (key, holder.lease_attempt) not in report.playing:
                lost.append(key)
        return self._take_back(lost)

    def longest_in_flight(self, now: float, limit: int) -> list[InFlight]:
        """Return the episodes that have been played for longest, at most `limit`.

        They are those that everybody may be waiting for.
        """
        in_flight = [
            InFlight(key, holder.actor, holder.lease_attempt, now - holder.since)
            for key, holder in self.leased.items()
        ]
        return sorted(in_flight, key=lambda episode: -episode.seconds)[:limit]

    def _task_of(self, key: EpisodeKey) -> tuple[str, int, str]:
        """Return the split and the number of an episode's task, and the evaluation set.

        Held-out tasks are played again where an evaluation has more episodes than there are. A set
        with a name has as many tasks as it says (supervisor/job.py).
        """
        settings = self.settings
        if not key.evaluation:
            return "train", self._training_task(key.group), ONLY_SET
        planned = settings.evaluation.locate(key.member)
        if planned.set.name == ONLY_SET:
            return planned.set.split, planned.task % settings.held_out_size, ONLY_SET
        return planned.set.split, planned.task, planned.set.name

    def _training_task(self, group: int) -> int:
        """Return a group's task; of one that holds no slot any more, it does not matter which."""
        task = self.curriculum.task_of(group)
        if task is None:
            return task_of_group(self.settings.seed, group, self.settings.train_size)
        return task

    def _take_back(self, keys: list[EpisodeKey]) -> list[EpisodeKey]:
        exhausted = []
        for key in keys:
            self._revoke(key)
            if len(self._leased_to[key]) >= self.settings.max_leases:
                del self._leased_to[key]
                exhausted.append(key)
            elif key.evaluation:
                self.pending_evaluation.appendleft(key)
            else:
                self.pending.appendleft(key)
        return exhausted

    def _revoke(self, key: EpisodeKey) -> None:
        holder = self.leased.pop(key, None)
        if holder is not None:
            self.revoked.append(LapsedLease(key, holder.lease_attempt, holder.actor))

    def _leave(self, groups: list[int]) -> None:
        self.holding.difference_update(groups)
        self.curriculum.forget_groups(groups)
        self._consumed_early.update(group for group in groups if group >= self.next_group)

    def _admit(self) -> None:
        while self._to_admit > 0 and len(self.holding) < self.settings.slots:
            group = self.next_group
            self.next_group += 1
            self._to_admit -= 1
            keys = [EpisodeKey(group, member) for member in range(self.settings.group_size)]
            if group in self._consumed_early:
                self._consumed_early.remove(group)
            else:
                self.holding.add(group)
                task = self._tasks_received.pop(group, None)
                settings = self.settings
                self.curriculum.admit(settings.seed, group, settings.train_size, task)
                self.pending.extend(key for key in keys if key not in self._received)
            self._received.difference_update(keys)


class CreditQueue:
    """Actors that could take episodes, served in the order of asking, episode by episode.

    One that has asked for many waits for its second as long as others do.

    Were they served actor by actor, one that asks again before its last request is met would keep
    its place, and when there is little to play, nobody behind it would ever get anything.
    """

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()  # an actor for each episode
        self._episodes: Counter[bytes] = Counter()
        self._claims: Counter[bytes] = Counter()  # on end, of more than we know of

    def __len__(self) -> int:
        """Count the episodes that could be taken."""
        return len(self._waiting)

    def add(self, actor: bytes, episodes: int) -> None:
        """Take note that the actor can take so many more."""
        self._waiting.extend([actor] * episodes)
        self._episodes[actor] += episodes

    def count(self, actor: bytes) -> int:
        """Count the episodes that this actor could take."""
        return self._episodes[actor]

    def hear_claim(self, actor: bytes, episodes: int) -> None:
        """Compare what an actor says that it could take, as with every heartbeat, with the queue.

        When that is more than we know of, and stays so, it is believed: leases were lost with a
        connection; at first they may be on their way. When it is less, a process before it has
        asked for the rest under its name.
        """
        missing = episodes - self._episodes[actor]
        if missing <= 0:
            self._claims[actor] = 0
            self._forget_latest(actor, -missing)
            return
        self._claims[actor] += 1
        if self._claims[actor] >= CLAIMS_BELIEVED:
            self._claims[actor] = 0
            self.add(actor, missing)

    def first(self) -> bytes:
        """The actor whose turn it is. IndexError if nobody waits."""
        return self._waiting[0]

    def pop(self) -> bytes:
        """Take the first one, which is given an episode, out of the queue."""
        actor = self._waiting.popleft()
        self._episodes[actor] -= 1
        return actor

    def forget(self, actor: bytes) -> None:
        """Forget an actor that takes nothing any more."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting != actor)
        del self._episodes[actor]
        del self._claims[actor]

    def _forget_latest(self, actor: bytes, episodes: int) -> None:
        """Forget so many of an actor's requests: the latest."""
        if not episodes:
            return
        kept: deque[bytes] = deque()
        for waiting in reversed(self._waiting):
            if waiting == actor and episodes:
                episodes -= 1
                self._episodes[actor] -= 1
            else:
                kept.appendleft(waiting)
        self._waiting = kept
