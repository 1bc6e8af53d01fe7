"""Admission and the learner's groups together.

How old what is trained on may be is bounded, and nothing is lost, whatever happens when.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import LearnerSection
from controller.admission import Admission, AdmissionSettings
from learner.data.episode_log import BATCHES_FILE, read_group_order, record_batch
from learner.data.groups import ClosedGroups, GroupBuffer
from learner.data.intake import EpisodeStore
from protocol.messages import DropReason, EpisodeKey
from tests.fixtures.controller import PLAN
from tests.fixtures.learner import fill, trajectory

MEMBERS = 2


class LoggedEpisodes:
    """Log that an intake writes to, in memory: offsets are numbers of records."""

    def __init__(self) -> None:
        self.frames: list = []

    @property
    def position(self) -> int:
        return len(self.frames)

    def append(self, frames: list) -> list[int]:
        self.frames += frames
        return list(range(len(self.frames) - len(frames), len(self.frames)))


class World:
    """A controller, a learner and engines that make versions of weights.

    There is nothing between them.
    """

    def __init__(self, learner: LearnerSection, updates: int) -> None:
        self.learner = learner
        self.updates = updates
        self.log = LoggedEpisodes()
        self.admitted_at: dict[int, int] = {}
        self.saved = (0, [], Counter(), ClosedGroups(), {}, 0)
        self.restore()

    def restore(self) -> None:
        """All processes begin again, from the last checkpoint and the log."""
        self.update, self.trained, self.told, closed, drops, position = copy.deepcopy(self.saved)
        self.engines = self.update
        self.buffer = GroupBuffer(MEMBERS, window=self.learner.window())
        self.buffer.resume(closed, drops)
        self.store = EpisodeStore(self.log, self.buffer)
        for offset, episode in list(enumerate(self.log.frames))[position:]:
            self.store.restore(episode, offset)
        self.admission = Admission(
            AdmissionSettings(
                self.learner.groups_per_update,
                MEMBERS,
                self.learner.max_staleness,
                100,
                seed=0,
                train_size=9,
                held_out_size=9,
                evaluation=PLAN,
            )
        )
        start = (
            self.buffer.closed.next_group,
            self.buffer.unconsumed_keys(),
            self.updates - self.update,
            self.buffer.closed.ahead(),
        )
        self.admission.start(*start)
        self.awaiting: list[int] = []
        self.leased: list[EpisodeKey] = []
        self.look()

    def look(self) -> None:
        """Actors take what there is; what was admitted just now is noted."""
        for group in range(self.admission.next_group):
            self.admitted_at.setdefault(group, self.engines)
        for lease in iter(lambda: self.admission.lease(b"actor"), None):
            assert lease.key not in self.buffer.unconsumed_keys()
            assert lease.key.group not in self.buffer.closed
            self.leased.append(lease.key)
        assert len(self.admission.holding) <= self.learner.slots()

    def save(self) -> None:
        self.saved = copy.deepcopy(
            (
                self.update,
                self.trained,
                self.told,
                self.buffer.closed,
                self.buffer.closed_drops(),
                self.store.resume_offset(),
            )
        )

    def arrive(self, key: EpisodeKey, reason: DropReason | None) -> None:
        """Let an episode arrive of an actor that delivers, and whose delivery is seen twice."""
        episode = trajectory(key.group, key.member, reason)
        self.store.add([(episode, episode)])
        self.store.add([(episode, episode)])
        assert self.admission.end_episode(key, b"actor", 0)
        self.leased.remove(key)

    def train(self) -> None:
        unusable = self.buffer.collect_complete()
        if unusable:
            self.admission.replace_dropped(unusable)
        batch = (
            self.buffer.pop_batch(self.learner.groups_per_update)
            if self.update < self.updates
            else None
        )
        if batch is None:
            return
        ages = [self.update - self.admitted_at[group] for group in batch[0]]
        assert max(ages) <= self.learner.largest_age()
        if self.learner.max_staleness == 0:
            assert self.admission.holding == set(batch[0]) and self.engines == self.update
        self.store.forget_closed()
        self.trained += [episode.key for group in batch[1] for episode in group]
        self.told += self.buffer.pop_closed_drops()
        self.update += 1
        self.admission.hold_until_applied(self.update, batch[0])
        self.awaiting.append(self.update)

    def apply(self) -> None:
        if self.awaiting:
            self.engines = self.awaiting.pop(0)
            self.admission.free_slots(self.engines)


EVENTS = ["arrive", "arrive", "arrive", "fail", "train", "train", "apply", "save", "crash"]


@given(
    groups=st.integers(1, 3),
    staleness=st.integers(0, 4),
    window=st.integers(0, 2),
    updates=st.integers(1, 8),
    schedule=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 99)), max_size=150),
    straggler=st.integers(0, 6),
)
def test_invariant_1_and_4_whatever_happens_when(
    groups, staleness, window, updates, schedule, straggler
):
    """No trained token is older than S + U versions, and each episode leaves once.

    Groups pass each other, and processes crash. With S = 0, nothing but the batch is under way, and
    it is of the newest weights. `straggler`: a group that comes when all wait for it.
    """
    world = World(
        LearnerSection(
            groups_per_update=groups,
            group_size=MEMBERS,
            max_staleness=staleness,
            order_window=window,
        ),
        updates,
    )
    for event, choice in schedule:
        ready = [key for key in world.leased if key.group != straggler]
        if event in ("arrive", "fail") and ready:
            world.arrive(
                ready[choice % len(ready)], DropReason.ENV_ERROR if event == "fail" else None
            )
        elif event == "crash":
            world.restore()
        elif event in ("train", "apply", "save"):
            getattr(world, event)()
        world.look()
    for _ in range(20 * updates):
        for key in [key for key in world.leased if key.group != straggler] or list(world.leased):
            world.arrive(key, None)
        world.train()
        world.apply()
        world.look()
    assert world.update == updates, "it came to its end"
    assert len(world.trained) == len(set(world.trained))
    left = [group for group in range(world.admission.next_group) if group in world.buffer.closed]
    dropped = (world.told + world.buffer.closed_drops()).total() - (
        world.told + world.buffer.closed_drops()
    )["wasted_dropped"]
    assert len(world.trained) + dropped == MEMBERS * len(left)


@pytest.mark.parametrize(("window", "updates"), [(0, 0), (1, 1), (2, 2)])
def test_a_group_that_never_comes_to_its_end_is_passed_by_as_many_as_the_window_says(
    window, updates
):
    world = World(
        LearnerSection(
            groups_per_update=2, group_size=MEMBERS, max_staleness=3, order_window=window
        ),
        updates=9,
    )
    for _ in range(20):
        for key in [key for key in world.leased if key.group != 0]:
            world.arrive(key, None)
        world.train()
        world.apply()
        world.look()
    assert world.update == updates and world.buffer.oldest_incomplete() == (0, [0, 1])


@pytest.mark.parametrize(
    ("settings", "window", "age"),
    [
        ({"max_staleness": 0, "order_window": 3}, 0, 0),
        ({"max_staleness": 1, "order_window": 0}, 0, 1),
        ({"max_staleness": 4, "order_window": 2}, 16, 6),
        ({"max_staleness": 4, "publish_lag": 4, "order_window": 2}, 0, 4),
    ],
    ids=["lock-step", "strict", "two versions more", "ages that are asked for"],
)
def test_how_many_groups_may_pass_and_how_old_that_makes_what_is_trained_on(settings, window, age):
    learner = LearnerSection(groups_per_update=8, **settings)
    assert (learner.window(), learner.largest_age()) == (window, age)


def test_groups_pass_only_if_the_batch_cannot_be_made_without_them():
    buffer = GroupBuffer(group_size=2, window=1)
    for group in (3, 2, 0, 1):
        fill(buffer, group)
    buffer.collect_complete()
    assert buffer.pop_batch(2)[0] == [0, 1]
    assert buffer.pop_batch(2)[0] == [2, 3]


def test_a_window_that_became_smaller_does_not_hold_a_resumed_run():
    buffer = GroupBuffer(group_size=2, window=0)
    buffer.resume(ClosedGroups(trained_ahead={4, 5}), {})
    for group in (0, 1, 2, 3):
        fill(buffer, group)
    buffer.collect_complete()
    assert buffer.pop_batch(2).groups == [0, 1]
    assert buffer.pop_batch(2).groups == [2, 3]
    assert buffer.closed.next_group == 6


def test_wait_names_the_lowest_incomplete_group_and_its_missing_members():
    """The lowest group that is not complete is named, and its missing members."""
    buffer = GroupBuffer(group_size=3)
    fill(buffer, 0)
    buffer.add(trajectory(1, 1))
    fill(buffer, 2)
    buffer.collect_complete()
    assert buffer.oldest_incomplete() == (1, [0, 2])


def test_the_order_of_groups_is_that_of_the_updates_which_counted(tmp_path):
    for update, groups in ((1, [0, 2]), (2, [1, 4]), (2, [1, 3])):
        record_batch(tmp_path, update, groups)
    with (tmp_path / BATCHES_FILE).open("a") as file:
        file.write('{"update": 3, "gro')
    assert read_group_order(tmp_path) == [0, 2, 1, 3]
    assert read_group_order(tmp_path / "none") == []
