"""Messages to bytes and back.

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
"""Bytes.

The largest message is a trajectory: 50 turns of 4,096 + 512 tokens with rejected attempts are 3 MB.
"""

MAX_WARNED = 1000
"""Peers that a line in the log was written for: whoever calls himself by a new name each time is
not to fill it."""

_PREFIX = b"F" + SCHEMA_VERSION.to_bytes(2, "little")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class BadFrame(ValueError):
    """The frame is no message of this schema."""


def encode(message: Message) -> bytes:
    """The message as one frame: 'F', the schema version (two bytes), msgpack."""
    return _PREFIX + _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """The message in `frame`. Raises BadFrame, and nothing else, whatever the bytes are."""
    if len(frame) > MAX_FRAME:
        raise BadFrame(f"{len(frame)} bytes is more than {MAX_FRAME}")
    if frame[:3] != _PREFIX:
        if frame[:1] == b"F" and len(frame) > 3:
            raise BadFrame(
                f"schema {int.from_bytes(frame[1:3], 'little')}, this process speaks "
                f"{SCHEMA_VERSION}"
            )
        raise BadFrame("no message of this project")
    try:
        return _decoder.decode(memoryview(frame)[3:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(str(error)) from None


class Received(NamedTuple):
    """A message, who sent it, and the frame that it came in."""

    peer: bytes
    message: Message
    frame: bytes


class FrameReader:
    """Decodes frames of many peers; counts what it could not read and logs it once per peer."""

    def __init__(self) -> None:
        self.dropped_frames = 0
        self._warned: set[bytes] = set()

    async def receive(self, router: zmq.asyncio.Socket) -> Received:
        """The next message from a ROUTER socket; what is none is dropped."""
        while True:
            if (received := self.take(await router.recv_multipart())) is not None:
                return received

    def take(self, parts: list[bytes]) -> Received | None:
        """What a ROUTER socket has received; None when it was dropped."""
        peer, *frames = parts
        if len(frames) != 1:
            self.refuse(peer, f"{len(frames)} frames in place of one")
            return None
        message = self.read(peer, frames[0])
        return None if message is None else Received(peer, message, frames[0])

    def refuse(self, peer: bytes, why: str) -> None:
        """Count a frame that is dropped, and log it if it is the first one from this peer."""
        self.dropped_frames += 1
        if peer not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(peer)
            log.warning(
                "dropped a frame from %r: %s (further ones are only counted)",
                display_name(peer),
                why,
            )

    def read(self, peer: bytes, frame: bytes) -> Message | None:
        """The message, or None when the frame was dropped."""
        try:
            return decode(frame)
        except BadFrame as error:
            self.refuse(peer, str(error))
            return None
