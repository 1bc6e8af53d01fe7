"""The end of a run, as actors from elsewhere hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from controller.controller import build_controller
from protocol.codec import FrameReader, Received, decode, encode
from protocol.delivery import DeliveryClient, DeliveryServer
from protocol.messages import Evaluate, Heartbeat, HeartbeatAck, LearnerReady, Message, Shutdown
from supervisor.endpoints import free_port
from tests.fixtures.runs import dies_at, job_in, running, running_small, small_config

OVER = Shutdown(reason="the run is over")


@pytest.mark.parametrize(
    ("said", "late", "told"), [([], [], []), ([OVER], [], [OVER]), ([], [OVER], [OVER])]
)
async def test_actors_are_told_that_the_run_is_over_when_the_learner_has_said_so(
    tmp_path: Path, said: Sequence[Message], late: Sequence[Message], told: Sequence[Message]
) -> None:
    """`late`: so shortly before the controller is ended that it has not been read yet."""
    job = job_in(tmp_path / "run", small_config())
    context = zmq.asyncio.Context()
    controller = build_controller(job, context)
    actor = context.socket(zmq.DEALER)
    learner = DeliveryClient(
        context, job.endpoints.learner, b"learner", b"controller", None, 0.2, FrameReader()
    )
    actor.set(zmq.IDENTITY, b"an actor")
    left = actor.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    actor.connect(job.endpoints.actors)
    serving = [
        asyncio.create_task(loop()) for loop in (controller.serve_actors, controller.serve_learner)
    ]
    try:
        async with asyncio.timeout(20):
            await actor.send(encode(Heartbeat()))
            assert isinstance(decode(await actor.recv()), HeartbeatAck)
            for word in (
                LearnerReady(next_group=0, received=[], updates_remaining=0),
                *said,
                Evaluate(evaluation=0, episodes=1),
            ):
                await learner.send(word)
            while not len(controller.announcements):  # all of it has been read then
                await asyncio.sleep(0.01)
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            for word in late:
                await learner.send(word)
                await_arrival(controller.transport.learner)
            await controller.close()
            await left.recv_multipart()
            assert [decode(await actor.recv()) for _ in range(await actor.poll(0))] == told
    finally:
        actor.disable_monitor()
        context.destroy(linger=0)


def await_arrival(server: DeliveryServer) -> None:
    """Have the next look at what has arrived wait until something has."""
    look = server.receive_waiting

    async def look_late() -> list[Received]:
        return [await server.receive(), *await look()]

    server.receive_waiting = look_late


@pytest.mark.slow
async def test_invariant_4_actors_from_elsewhere_wait_for_a_run_whose_learner_was_killed(
    tmp_path: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its last weights: nothing is played any more, and the run is not over."""
    port = str(free_port())
    settings = {"actor__count": "0", "controller__port": port, "actor__heartbeat_seconds": "0.2"}
    async with running(
        tmp_path, "actor", "--connect", f"tcp://127.0.0.1:{port}", "--actors", "2", "--wait", "90"
    ) as actors:
        # Two checkpoints follow an update each, one comes before the last weights.
        died = dies_at(
            "learner.training:Training.begin_checkpoint before 4", tmp_path / "died", monkeypatch
        )
        async with running_small(tmp_path / "run", small_policy, **settings) as run:
            assert await run.ended() == 1 and died.exists(), run.output
            assert len(run.updates()) == 2
        assert actors.process.returncode is None
        async with running_small(
            tmp_path / "run",
            small_policy,
            resume=str(tmp_path / "run"),
            run__max_updates="3",
            **settings,
        ) as run:
            assert await run.ended() == 0, run.output
        assert await actors.ended(30) == 0 and "is lost: looking for it" in actors.output
