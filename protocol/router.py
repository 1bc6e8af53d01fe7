"""ROUTER sockets: names by which they know their peers, and receiving in batches.

A peer that connects again under its name takes the place of its old connection
(ZMQ_ROUTER_HANDOVER), which may be dead without either end knowing. Whoever knows a name can do
that. So the names of actors, which the keys do not tell apart, are secrets of theirs and the run's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import zmq
import zmq.asyncio

SECRET_BYTES = 16
_BEFORE_SECRET = b"/"

MAX_BATCH_BYTES = 1 << 20
"""Bytes taken before other loops of the process get their turn: a few milliseconds."""


def make_secret_name(prefix: str) -> bytes:
    """Make a name that begins with `prefix` and that nobody else can guess."""
    return prefix.encode() + _BEFORE_SECRET + secrets.token_hex(SECRET_BYTES).encode()


def display_name(peer: bytes) -> str:
    """Return the part of a peer's name that logs and pages may show."""
    if is_nameless(peer):
        return f"nameless {peer.hex()}"
    return peer.partition(_BEFORE_SECRET)[0].decode(errors="replace")


def is_nameless(peer: bytes) -> bool:
    """Say whether ZeroMQ has made up the name.

    It does so for peers that give none, and for a connection whose place was taken.
    """
    return peer[:1] in (b"\0", b"")


class BatchedRouter:
    """A ROUTER socket that nobody else receives from or waits at.

    All messages that wait are received at once: they share what a receive of asyncio's socket
    costs, several times what ZeroMQ's own does.
    """

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        # The same socket without asyncio. Using it takes away the sign by which asyncio notices
        # what arrives. So it is used only while no receive is pending, and each receive looks for
        # itself before it waits.
        self._plain_socket = zmq.Socket.shadow(socket)

    async def receive(self) -> list[list[bytes]]:
        """Receive each message that has arrived, at least one, as its list of frames.

        Other loops of the process have had their turn before.
        """
        await asyncio.sleep(0)  # a receive does not wait while there is something
        messages = [await self._socket.recv_multipart()]
        room_bytes = MAX_BATCH_BYTES
        while room_bytes > 0:
            try:
                frames = self._plain_socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            messages.append(frames)
            room_bytes -= sum(len(frame) for frame in frames)
        return messages

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message, which begins with its peer's name, without ever waiting.

        A ROUTER drops what is for a peer that is gone, or too much for one.
        """
        self._plain_socket.send_multipart(frames, zmq.NOBLOCK)
