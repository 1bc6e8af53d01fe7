"""Faults that show only when there is much of something."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from controller.controller import build_controller
from protocol.codec import FrameReader, decode, encode
from protocol.delivery import DeliveryClient
from protocol.files import allow_many_files
from protocol.messages import (
    DropReason,
    EpisodeKey,
    Heartbeat,
    HeartbeatAck,
    Lease,
    TurnFailed,
    TurnRequest,
    TurnResult,
    WeightsApplied,
)
from protocol.security import LOST_AFTER
from tests.fixtures.messages import make_turn_failed, make_turn_request
from tests.fixtures.runs import job_in, small_config


class Bench:
    """A controller whose engines nobody asks; an actor and a learner are this test."""

    def __init__(self, directory: Path) -> None:
        self.job = job_in(directory, small_config(actor__heartbeat_seconds="0.2"))
        self.context = zmq.asyncio.Context()
        self.controller = build_controller(self.job, self.context)
        self.actor = self.context.socket(zmq.DEALER)
        self.learner = DeliveryClient(
            self.context,
            self.job.endpoints.learner,
            b"learner",
            b"controller",
            None,
            2.0,
            FrameReader(),
        )
        self.actor.set(zmq.IDENTITY, b"an actor")
        self.actor.connect(self.job.endpoints.actors)

    def lease(self) -> Lease:
        """Lease the episode that the actor may play."""
        self.controller.admission.start(next_group=0, received=[], updates_remaining=1)
        return self.controller.admission.lease(b"an actor", time.monotonic())

    async def ask(self, request: TurnRequest) -> TurnResult | TurnFailed:
        await self.actor.send(encode(request))
        return decode(await asyncio.wait_for(self.actor.recv(), 20))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "run")
    serving = [
        asyncio.create_task(loop())
        for loop in (made.controller.serve_actors, made.controller.serve_learner)
    ]
    yield made
    for task in serving:
        task.cancel()
    await made.controller.close()
    made.context.destroy(linger=0)


def request_of(lease: Lease, turn: int = 0) -> TurnRequest:
    return make_turn_request(lease.key, [1], lease_attempt=lease.lease_attempt, turn_index=turn)


async def test_what_the_controller_says_reaches_a_learner_that_is_busy_however_much_it_is(
    bench: Bench,
):
    """A learner that is busy misses nothing of what the controller says.

    At the end of a run the controller names each episode that was canceled, and then says what the
    learner waits for. A ROUTER drops what does not fit its queue, without a word.
    """
    async with asyncio.timeout(180):
        for version in range(20_000):
            await bench.controller.transport.tell_learner(
                WeightsApplied(version=version, seconds=0.0, control_state=bytes(1000))
            )
        received = [(await bench.learner.receive()).message.version for _ in range(20_000)]
    assert received == list(range(20_000))


def test_the_limit_of_open_files_is_what_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_turn_that_is_asked_for_again_is_answered_again_and_not_generated_again(
    bench: Bench,
):
    """Since the answer was lost with its connection."""
    asked = []
    lease = bench.lease()

    async def answer(request: TurnRequest, seed: int) -> TurnFailed:
        asked.append(request.turn_index)
        return make_turn_failed(request)

    bench.controller.turn_service.turns.run = answer
    answers = [(await bench.ask(request_of(lease, turn))).turn_index for turn in (0, 0, 1, 1)]
    assert (answers, asked) == ([0, 0, 1, 1], [0, 1])


async def test_an_actor_that_was_heard_of_while_the_controller_stood_still_is_not_lost(
    bench: Bench,
):
    lease = bench.lease()
    controller = bench.controller
    await bench.actor.send(encode(Heartbeat()))
    await bench.actor.recv()
    watching = asyncio.create_task(controller.liveness_loop())
    await asyncio.sleep(0)
    await bench.actor.send(encode(Heartbeat()))
    time.sleep(
        (LOST_AFTER + 2) * controller.config.actor.heartbeat_seconds
    )  # the loop that is blocked is the controller's
    assert isinstance(decode(await asyncio.wait_for(bench.actor.recv(), 20)), HeartbeatAck)
    watching.cancel()
    assert controller.admission.has_lease(lease.key, lease.lease_attempt, b"an actor") and list(
        controller.roster.last_seen
    ) == [b"an actor"]


@pytest.mark.parametrize("knows", [True, False])
async def test_a_lease_that_its_actor_does_not_speak_of_is_taken_back(bench: Bench, knows: bool):
    """A lease of which its actor never speaks is taken back.

    It was lost on its way, or with a process that had the name before, which asked for more that
    this one does not want.
    """
    controller = bench.controller
    lease = bench.lease()
    beat = controller.config.actor.heartbeat_seconds
    controller.leases.credits.add(b"an actor", 1)
    spoken_of = [(lease.key, lease.lease_attempt)] if knows else []
    watching = asyncio.create_task(controller.liveness_loop())
    until = time.monotonic() + (LOST_AFTER + 4) * beat
    while time.monotonic() < until:
        await bench.actor.send(encode(Heartbeat(asking=0, playing=spoken_of)))
        await asyncio.wait_for(bench.actor.recv(), 20)
        await asyncio.sleep(beat)
    watching.cancel()
    assert controller.admission.has_lease(lease.key, lease.lease_attempt, b"an actor") == knows
    assert controller.leases.credits.count(b"an actor") == 0


async def test_turns_that_an_actor_has_no_lease_for_are_refused_and_leave_nothing_behind(
    bench: Bench,
):
    for attempt in range(20):
        answer = await bench.ask(make_turn_request(EpisodeKey(0, 0), [1], lease_attempt=attempt))
        assert (answer.lease_attempt, answer.reason) == (attempt, DropReason.CANCELED)
    assert not bench.controller.turn_service.known_leases()


async def test_a_turn_whose_lease_lapses_while_it_is_played_leaves_nothing_behind(bench: Bench):
    lease = bench.lease()
    scores = bench.controller.turn_service.turns.scores

    async def answer(request: TurnRequest, seed: int) -> TurnFailed:
        bench.controller.admission.take_back_from(b"an actor")
        scores[request.key, request.lease_attempt] = 0.5
        return make_turn_failed(request)

    bench.controller.turn_service.turns.run = answer
    await bench.ask(request_of(lease))
    assert not bench.controller.turn_service.known_leases()
