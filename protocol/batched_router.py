"""All messages that wait at a socket, at once: what an asyncio socket costs, several times what
ZeroMQ does, they share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import zmq
import zmq.asyncio

MOST_AT_ONCE = 1 << 20
"""Bytes taken before other loops of the process get their turn: a few milliseconds."""


class BatchedRouter:
    """Of a socket that nobody else receives from or waits at."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        # The same socket without asyncio. Using it takes away the sign by which asyncio notices
        # what arrives; so it is used only while no receive is pending, and each receive looks for
        # itself before it waits.
        self._plain = zmq.Socket.shadow(socket)

    async def receive(self) -> list[list[bytes]]:
        """The parts of each message that has arrived, one at least; other loops have had their turn
        before."""
        await asyncio.sleep(0)  # a receive does not wait while there is something
        found = [await self._socket.recv_multipart()]
        left = MOST_AT_ONCE
        while left > 0:
            try:
                found.append(self._plain.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            left -= sum(map(len, found[-1]))
        return found

    def send(self, parts: Sequence[bytes]) -> None:
        """By a ROUTER, which never makes anybody wait: what is for a peer that is gone, or too much
        for one, is dropped."""
        self._plain.send_multipart(parts, zmq.NOBLOCK)
