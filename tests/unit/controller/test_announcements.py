"""Weights and evaluations in the learner's order: an evaluation is of the version before it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from controller.announcements import Announcements
from protocol.messages import Evaluate, WeightsPublished
from tests.fixtures.controller import make


def weights(version: int) -> WeightsPublished:
    return WeightsPublished(version=version, checksum="", trained=[], last=False)


async def nothing() -> None:
    pass


async def evaluating(longest_seconds: float = 60.0):
    """Begin an evaluation of version 1 of two episodes, both leased.

    Somebody waits for version 2.
    """
    admission = make()
    announced = Announcements(admission, 1, longest_seconds, nothing)
    for message in (weights(1), Evaluate(evaluation=7, episodes=2), weights(2)):
        await announced.put(message)
    assert (await announced.next_weights()).version == 1 and not admission.is_evaluating()
    waiting = asyncio.create_task(announced.next_weights())
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
    assert (await announced.next_weights()).version == 3 and not admission.is_evaluating()


async def test_evaluation_that_does_not_end_holds_weights_for_one_episode_at_most(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An evaluation that does not end holds new weights no longer than an episode may take."""
    longest = 0.5
    clock = asyncio.get_running_loop().time
    with caplog.at_level(logging.WARNING):
        _, announced, waiting, _ = await evaluating(longest)
        assert (await waiting).version == 2
    assert "actor.episode_seconds" in caplog.text
    since = clock()
    for version in (3, 4):  # nor does each of those that follow wait as long for the same one
        await announced.put(weights(version))
        assert (await announced.next_weights()).version == version
    assert clock() - since < longest
