"""Messages that wait at a socket are received together, and in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import zmq
import zmq.asyncio

import protocol.router
from protocol.router import BatchedRouter


@pytest.fixture
async def sockets() -> AsyncIterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    """A ROUTER and a peer of it; what is sent has arrived."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    peer = context.socket(zmq.DEALER)
    router.bind("inproc://arrivals")
    peer.connect("inproc://arrivals")
    yield router, peer
    context.destroy(linger=0)


async def test_all_that_wait_are_received_at_once_and_then_what_comes(sockets) -> None:
    router, peer = sockets
    arrivals = BatchedRouter(router)
    for number in range(100):
        await peer.send(str(number).encode())
    assert [int(frame) for _, frame in await arrivals.receive()] == list(range(100))
    waiting = asyncio.create_task(arrivals.receive())
    await peer.send(b"later")
    ((identity, frame),) = await asyncio.wait_for(waiting, 10)
    arrivals.send([identity, b"answer"])
    assert (frame, await peer.recv()) == (b"later", b"answer")


async def test_no_more_is_received_at_once_than_other_loops_can_wait_for(
    sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, peer = sockets
    monkeypatch.setattr(protocol.router, "MAX_BATCH_BYTES", 30)
    for _ in range(20):
        await peer.send(bytes(5))
    received = [len(await BatchedRouter(router).receive()) for _ in range(2)]
    assert all(1 < together < 20 for together in received)


async def test_other_loops_have_their_turn_though_there_is_always_something(
    sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, peer = sockets
    monkeypatch.setattr(protocol.router, "MAX_BATCH_BYTES", 1)
    for _ in range(100):
        await peer.send(b"x")
    arrivals = BatchedRouter(router)
    received = 0

    async def receive() -> None:
        nonlocal received
        while True:
            received += len(await arrivals.receive())

    receiving = asyncio.create_task(receive())
    turns = 0
    while received < 100:
        turns += 1
        await asyncio.sleep(0)
    receiving.cancel()
    assert turns > 40
