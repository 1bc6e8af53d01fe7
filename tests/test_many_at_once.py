"""What breaks only when there is much of it."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio
from run_fixtures import job_in, small_config

from controller.main import Controller
from protocol.arrays import INT32, pack
from protocol.codec import decode, encode
from protocol.files import allow_many_files
from protocol.messages import Applied, DropReason, EpisodeKey, LearnerState, TurnFailed, TurnRequest


async def test_what_the_controller_says_reaches_a_learner_that_is_busy_however_much_it_is(tmp_path: Path):
    """At the end of a run it names each episode that was cancelled, and then says what the learner waits for. A ROUTER drops what does not
    fit its queue, without a word."""
    job, context = job_in(tmp_path / "run", small_config()), zmq.asyncio.Context()
    controller = Controller(job, context)
    learner = context.socket(zmq.DEALER)
    learner.connect(job.endpoints.learner)
    serving = asyncio.create_task(controller._serve_learner())
    try:
        await learner.send(encode(LearnerState(next_group=0, received=[], updates_left=0)))
        async with asyncio.timeout(180):
            while controller._learner_id is None:
                await asyncio.sleep(0.01)
            for version in range(20_000):
                await controller._to_learner(Applied(version=version, seconds=0.0, control=bytes(1000)))
            received = [decode(await learner.recv()).version for _ in range(20_000)]
        assert received == list(range(20_000))
    finally:
        serving.cancel()
        await controller.close()
        context.destroy(linger=0)


def test_the_limit_of_open_files_is_what_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_turn_that_is_asked_for_again_is_answered_again_and_not_generated_again(tmp_path: Path):
    """Since the answer was lost with its connection."""
    job, context = job_in(tmp_path / "run", small_config()), zmq.asyncio.Context()
    controller = Controller(job, context)
    asked = []

    async def answer(request: TurnRequest) -> TurnFailed:
        asked.append(request.turn)
        return TurnFailed(key=request.key, attempt=0, turn=request.turn, reason=DropReason.ENGINE_ERROR, detail="none")

    controller._desk._answer = answer
    controller.admission.start(next_group=0, received=[], updates_left=1)
    lease = controller.admission.lease(b"an actor")
    actor = context.socket(zmq.DEALER)
    actor.set(zmq.IDENTITY, b"an actor")
    actor.connect(job.endpoints.actors)
    serving = asyncio.create_task(controller._serve_actors())
    request = TurnRequest(key=lease.key, attempt=lease.attempt, turn=0, prompt=pack([1], INT32))
    try:
        answers = []
        for turn in (0, 0, 1, 1):
            await actor.send(encode(msgspec.structs.replace(request, turn=turn)))
            answers.append(decode(await asyncio.wait_for(actor.recv(), 20)).turn)
        assert (answers, asked) == ([0, 0, 1, 1], [0, 1])
    finally:
        serving.cancel()
        await controller.close()
        context.destroy(linger=0)


async def test_turns_that_an_actor_has_no_lease_for_are_refused_and_leave_nothing_behind(tmp_path: Path):
    job, context = job_in(tmp_path / "run", small_config()), zmq.asyncio.Context()
    controller = Controller(job, context)
    actor = context.socket(zmq.DEALER)
    actor.connect(job.endpoints.actors)
    serving = asyncio.create_task(controller._serve_actors())
    try:
        for attempt in range(20):
            await actor.send(encode(TurnRequest(key=EpisodeKey(0, 0), attempt=attempt, turn=0, prompt=pack([1], INT32))))
            answer = decode(await asyncio.wait_for(actor.recv(), 20))
            assert (answer.attempt, answer.reason) == (attempt, DropReason.CANCELLED)
        assert not controller._desk._answers and not controller._desk._asked
    finally:
        serving.cancel()
        await controller.close()
        context.destroy(linger=0)


async def test_a_turn_whose_lease_lapses_while_it_is_played_leaves_nothing_behind(tmp_path: Path):
    job, context = job_in(tmp_path / "run", small_config()), zmq.asyncio.Context()
    controller = Controller(job, context)
    controller.admission.start(next_group=0, received=[], updates_left=1)
    lease = controller.admission.lease(b"an actor")
    scores = controller._desk.turns._scores

    async def answer(request: TurnRequest) -> TurnFailed:
        controller.admission.actor_lost(b"an actor")
        scores[request.key, request.attempt] = 0.5
        return TurnFailed(key=request.key, attempt=0, turn=0, reason=DropReason.ENGINE_ERROR, detail="none")

    controller._desk._answer = answer
    try:
        await controller._desk._turn(b"an actor", TurnRequest(key=lease.key, attempt=lease.attempt, turn=0, prompt=pack([1], INT32)))
        assert not scores and not controller._desk._answers
    finally:
        await controller.close()
        context.destroy(linger=0)
