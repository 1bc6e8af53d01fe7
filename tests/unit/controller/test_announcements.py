"""Weights and evaluations in the learner's order: an evaluation is of the version before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from controller.announcements import Announcements
from protocol.messages import EpisodeKey, Evaluate, Lease, WeightsPublished
from tests.fixtures.controller import make


def weights(version: int) -> WeightsPublished:
    return WeightsPublished(version=version, checksum="", trained=[], last=False)


async def nothing() -> None:
    pass


async def drops_nothing(episodes: Sequence[EpisodeKey]) -> None:
    raise AssertionError(f"dropped: {episodes}")


async def evaluating(patience_s: float = 60.0, on_dropped=drops_nothing):
    """Begin an evaluation of version 1 of two episodes, both leased.

    Somebody waits for version 2.
    """
    admission = make()
    announced = Announcements(admission, 1, patience_s, nothing)
    for message in (weights(1), Evaluate(evaluation=7, episodes=2), weights(2)):
        await announced.put(message)
    assert (await announced.next_weights(on_dropped)).version == 1
    assert admission.evaluation_episodes_left() == 0
    waiting = asyncio.create_task(announced.next_weights(on_dropped))
    while len(announced):
        await asyncio.sleep(0)
    return admission, announced, waiting, [admission.lease(b"a") for _ in range(2)]


async def test_new_weights_wait_for_the_last_episode_of_an_evaluation() -> None:
    admission, announced, waiting, leases = await evaluating()
    for lease in leases:
        assert lease.key.evaluation and not waiting.done()
        assert admission.end_episode(lease.key, b"a", lease.lease_attempt)
        announced.check_evaluations()
    assert (await waiting).version == 2


async def test_an_evaluation_that_is_given_up_holds_nothing_and_its_leases_lapse() -> None:
    admission, announced, waiting, leases = await evaluating()
    await announced.put(Evaluate(evaluation=7, episodes=0))
    assert (await waiting).version == 2
    assert admission.revoked == [(lease.key, lease.lease_attempt, b"a") for lease in leases]
    for message in (
        Evaluate(evaluation=8, episodes=2),
        Evaluate(evaluation=8, episodes=0),
        weights(3),
    ):
        await announced.put(message)
    assert (await announced.next_weights(drops_nothing)).version == 3
    assert admission.evaluation_episodes_left() == 0


async def test_an_evaluation_of_which_no_episode_ends_is_dropped_before_newer_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dropped: list[EpisodeKey] = []

    async def drop(episodes: Sequence[EpisodeKey]) -> None:
        dropped.extend(episodes)

    with caplog.at_level(logging.WARNING):
        admission, announced, waiting, leases = await evaluating(0.0, drop)
        assert (await waiting).version == 2
    assert "actor.episode_seconds" in caplog.text
    assert sorted(dropped, key=lambda key: key.member) == [lease.key for lease in leases]
    assert not any(admission.has_lease(lease.key, 0, b"a") for lease in leases)
    await announced.put(weights(3))
    assert (await announced.next_weights(drops_nothing)).version == 3


class Run(stateful.RuleBasedStateMachine):
    """A learner, a controller and actors, whatever happens in which order.

    Invariant 13: while an episode of an evaluation is played, the engines have the weights that
    were announced last before the evaluation. And nothing waits for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.admission = make(groups=2, group_size=2, updates=100)
        self.announced = Announcements(self.admission, 100, 1e9, nothing)
        self.published = -1
        self.engines = -1
        self.evaluated: dict[int, int] = {}  # evaluation -> version
        self.abandoned: set[int] = set()
        self.leases: list[tuple[bytes, Lease]] = []
        self.applying = self.loop.create_task(self._apply())
        self.publish()

    async def _apply(self) -> None:
        while True:
            message = await self.announced.next_weights(drops_nothing)
            self.engines = message.version
            self.admission.free_slots(message.version)

    def _settle(self) -> None:
        """Let the controller do all that it can now."""
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))

    def _say(self, message: WeightsPublished | Evaluate) -> None:
        self.loop.run_until_complete(self.announced.put(message))
        self._settle()

    @stateful.precondition(lambda self: len(self.announced) < 20)
    @stateful.rule()
    def publish(self) -> None:
        self.published += 1
        self._say(weights(self.published))

    @stateful.precondition(lambda self: len(self.announced) < 20)
    @stateful.rule(episodes=st.integers(1, 4))
    def evaluate(self, episodes: int) -> None:
        number = len(self.evaluated)
        self.evaluated[number] = self.published
        self._say(Evaluate(evaluation=number, episodes=episodes))

    @stateful.precondition(lambda self: self.evaluated)
    @stateful.rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.evaluated)))
        self.abandoned.add(number)
        self._say(Evaluate(evaluation=number, episodes=0))
        self._forget_lapsed()

    @stateful.rule(actor=st.sampled_from([b"a", b"b", b"c"]))
    def lease(self, actor: bytes) -> None:
        lease = self.admission.lease(actor)
        if lease is not None:
            self.leases.append((actor, lease))

    @stateful.precondition(lambda self: self.leases)
    @stateful.rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        actor, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.admission.end_episode(lease.key, actor, lease.lease_attempt)
        self.announced.check_evaluations()
        self._settle()

    @stateful.rule(actor=st.sampled_from([b"a", b"b", b"c"]))
    def lose(self, actor: bytes) -> None:
        self.admission.take_back_from(actor)
        self._forget_lapsed()

    def _forget_lapsed(self) -> None:
        self.leases = [
            (actor, lease)
            for actor, lease in self.leases
            if self.admission.has_lease(lease.key, lease.lease_attempt, actor)
        ]
        self.announced.check_evaluations()
        self._settle()

    @stateful.invariant()
    def evaluations_are_of_one_version(self) -> None:
        for _, lease in self.leases:
            if lease.key.evaluation:
                assert self.engines == self.evaluated[lease.key.group]
                assert lease.key.group not in self.abandoned

    def teardown(self) -> None:
        """Play all that there is: then the engines come to have the newest weights."""
        while self.leases or self.admission.evaluation_episodes_left():
            self.lease(b"d")
            actor, lease = self.leases.pop()
            self.admission.end_episode(lease.key, actor, lease.lease_attempt)
            self.announced.check_evaluations()
            self._settle()
        assert self.engines == self.published
        self.applying.cancel()
        self.loop.run_until_complete(asyncio.gather(self.applying, return_exceptions=True))
        self.loop.close()


test_invariant_13_an_evaluation_is_of_one_version_whatever_happens = Run.TestCase
