"""Encoding of messages as frames of bytes, and reading them.

A frame that cannot be read is counted and dropped: it never stops a process.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import msgspec
import zmq.asyncio

from protocol.frames import AnyMessage
from protocol.messages import SCHEMA_VERSION, Message
from protocol.router import display_name

log = logging.getLogger(__name__)

MAX_FRAME = 64 << 20
"""Bytes of the largest frame that is read.

The largest message is a trajectory: 50 turns of 4,096 + 512 tokens with rejected responses are
3 MB.
"""

MAX_WARNED = 1000
"""Peers that get a line in the log.

Whoever calls himself by a new name each time is not to fill it.
"""

_PREFIX = b"F" + SCHEMA_VERSION.to_bytes(2, "little")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class BadFrame(ValueError):
    """The frame is no message of this schema."""


def encode(message: Message) -> bytes:
    """Encode the message as one frame: 'F', the schema version (two bytes), msgpack."""
    return _PREFIX + _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """Decode the message in `frame`; raises nothing but BadFrame, whatever the bytes are."""
    if len(frame) > MAX_FRAME:
        raise BadFrame(f"{len(frame)} bytes is more than {MAX_FRAME}")
    if frame[:3] != _PREFIX:
        if frame[:1] == b"F" and len(frame) > 3:
            version = int.from_bytes(frame[1:3], "little")
            raise BadFrame(f"schema {version}, this process speaks {SCHEMA_VERSION}")
        raise BadFrame("no message of this project")
    try:
        return _decoder.decode(memoryview(frame)[3:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(str(error)) from None


class Received(NamedTuple):
    """A message, its sender, and the frame that it came in."""

    peer: bytes
    message: Message
    frame: bytes


class FrameReader:
    """Decodes frames of many peers.

    Frames that it could not read are counted, and logged once per peer.
    """

    def __init__(self) -> None:
        self.dropped_frames = 0
        self._warned: set[bytes] = set()

    async def receive(self, router: zmq.asyncio.Socket) -> Received:
        """Receive the next message from a ROUTER socket; frames that are none are dropped."""
        while True:
            received = self.take(await router.recv_multipart())
            if received is not None:
                return received

    def take(self, parts: list[bytes]) -> Received | None:
        """Decode what a ROUTER socket has received; None when it was dropped."""
        peer, *frames = parts
        if len(frames) != 1:
            self.refuse(peer, f"{len(frames)} frames in place of one")
            return None
        message = self.read(peer, frames[0])
        if message is None:
            return None
        return Received(peer, message, frames[0])

    def refuse(self, peer: bytes, why: str) -> None:
        """Count a frame that is dropped, and log the first one from each peer."""
        self.dropped_frames += 1
        if peer not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(peer)
            log.warning(
                "dropped a frame from %r: %s (further ones are only counted)",
                display_name(peer),
                why,
            )

    def read(self, peer: bytes, frame: bytes) -> Message | None:
        """Decode a frame; None when it was dropped."""
        try:
            return decode(frame)
        except BadFrame as error:
            self.refuse(peer, str(error))
            return None
