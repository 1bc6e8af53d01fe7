"""Shard and its engine alone: the controller and an actor are the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq
import zmq.asyncio

from controller.leases import sign_lease
from controller.shard_worker import build_shard_worker
from engine.client import EngineError
from engine.fake.server import FakeEngine
from learner.model.policy import load_policy
from learner.publish import WeightWriter, copy_weights
from protocol.arrays import INT32, pack
from protocol.codec import FrameReader, decode, encode
from protocol.messages import (
    DropReason,
    EpisodeKey,
    LoadWeights,
    Message,
    Revoked,
    ShardState,
    TurnFailed,
    TurnRequest,
    TurnResult,
)
from tests.fixtures.runs import job_in, small_config


class Bench:
    """A shard and its engine; the controller and an actor are this test."""

    def __init__(self, directory: Path) -> None:
        self.job = job_in(
            directory,
            small_config(cluster__shards="2", engine__count="2", actor__heartbeat_seconds="0.1"),
        )
        self.context = zmq.asyncio.Context()
        self.reader = FrameReader()
        self.controller = self.context.socket(zmq.ROUTER)
        self.actor = self.context.socket(zmq.DEALER)
        self.controller.bind(self.job.endpoints.shards)
        self.actor.set(zmq.IDENTITY, b"an actor")
        self.actor.connect(self.job.endpoints.turns[0])
        self.shard = build_shard_worker(self.job, self.context, 1)
        weights = copy_weights(load_policy(Path(self.job.model_dir)), 0, "float32")
        self.weights = LoadWeights(
            version=0, checksum=WeightWriter(Path(self.job.weights_dir)).write(weights).checksum
        )

    async def state(self, version: int) -> ShardState:
        """The first one with such weights."""
        async with asyncio.timeout(60):
            while True:
                self.peer, state, _ = await self.reader.receive(self.controller)
                if state.version == version:
                    return state

    async def say(self, message: Message) -> None:
        await self.controller.send_multipart([self.peer, encode(message)])

    def first_request(self, key: EpisodeKey) -> TurnRequest:
        """The request of an episode's first turn, by the actor that holds its lease."""
        return TurnRequest(
            key=key,
            lease_attempt=0,
            turn_index=0,
            prompt=pack([1, 2], INT32),
            permit=sign_lease(self.job.permit_key, b"an actor", key, 0),
        )

    async def ask(self, request: TurnRequest) -> TurnResult | TurnFailed:
        await self.actor.send(encode(request))
        return decode(await asyncio.wait_for(self.actor.recv(), 60))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "run")
    endpoints = made.job.endpoints
    engine = FakeEngine(
        made.job.model_dir, port=urlsplit(endpoints.engines[1]).port, signals=endpoints.signals[1]
    )
    await engine.start()
    yield made
    made.context.destroy(linger=0)
    await engine.stop()


async def test_a_shard_takes_turns_of_leases_that_were_given_and_have_not_lapsed(
    bench: Bench,
) -> None:
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    await bench.say(bench.weights)
    assert (await bench.state(0)).engines[0][:2] == (bench.job.endpoints.engines[1], "healthy")
    key = EpisodeKey(0, 0)
    request = bench.first_request(key)
    answer = await bench.ask(request)
    assert isinstance(answer, TurnResult) and {span.version for span in answer.kept.spans} == {0}
    for stolen in (sign_lease(bench.job.permit_key, b"another", key, 1), b""):
        refused = await bench.ask(msgspec.structs.replace(request, lease_attempt=1, permit=stolen))
        assert isinstance(refused, TurnFailed) and refused.reason is DropReason.CANCELED
    await bench.say(Revoked(leases=[(key, 0)]))
    async with asyncio.timeout(60):
        late = answer
        while isinstance(late, TurnResult):  # the word was still on its way
            request = msgspec.structs.replace(request, turn_index=request.turn_index + 1)
            late = await bench.ask(request)
    assert late.reason is DropReason.CANCELED
    running.cancel()
    await asyncio.wait({running})


async def test_a_turn_that_is_asked_for_before_a_shards_first_weights_is_sampled_with_them(
    bench: Bench,
) -> None:
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    request = bench.first_request(EpisodeKey(0, 0))
    answer = asyncio.create_task(bench.ask(request))
    await bench.state(-1)  # which it says from time to time
    await bench.say(bench.weights)
    assert {span.version for span in (await answer).kept.spans} == {0}
    running.cancel()
    await asyncio.wait({running})


async def test_shard_whose_engine_refuses_weights_ends_and_keeps_no_update_waiting(
    bench: Bench,
) -> None:
    """A shard whose engine refuses the newest weights ends and keeps no update waiting."""
    running = asyncio.create_task(bench.shard.run())
    await bench.state(-1)
    await bench.say(msgspec.structs.replace(bench.weights, checksum="of something else"))
    async with asyncio.timeout(60):
        while not (await bench.state(-1)).last:
            pass
    with pytest.raises(ExceptionGroup) as failed:
        await running
    assert failed.group_contains(EngineError)
