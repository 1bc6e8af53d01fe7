"""Messages that arrive once and in their order, whatever a connection loses.

ZeroMQ connects again by itself, and what was on its way over the old connection is lost without a
word. Here each message has a number. The other end confirms up to where it has all messages, and
what is not confirmed is sent again.

This is for messages that are sent once and have to arrive. It is not needed for a state that is
sent anew all the time. Nor is it for questions that an answer confirms, as an actor's are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import zmq
import zmq.asyncio

from protocol.codec import FrameReader, Received, encode
from protocol.frames import Confirmed, Numbered
from protocol.messages import Message
from protocol.security import CurveKeys, bind, connect

log = logging.getLogger(__name__)

WARN_EVERY_REPEATS = 30
"""Repeats of a message after which the log says again that nobody confirms it."""


class Delivery:
    """Both directions of the messages with one peer: no sockets, no clock."""

    def __init__(
        self, peer: bytes, transmit: Callable[[bytes], Awaitable[None]], reader: FrameReader
    ) -> None:
        """`transmit` puts a frame on its way to the peer, where it may or may not arrive.

        `reader` counts frames that are no messages.
        """
        self._peer = peer
        self._transmit = transmit
        self._reader = reader
        self._session = secrets.token_bytes(8)
        self._next_number = 0
        self._unconfirmed: deque[Numbered] = deque()
        self._last_oldest: int | None = None  # number of the oldest one when `resend` last looked
        self._repeats = 0  # of that one
        self._peer_session = b""
        self._expected_number = 0

    @property
    def unconfirmed(self) -> int:
        """Messages that the peer may not have."""
        return len(self._unconfirmed)

    async def send(self, message: Message) -> None:
        """Send a message, and keep it until it is confirmed."""
        numbered = Numbered(session=self._session, number=self._next_number, frame=encode(message))
        self._next_number += 1
        self._unconfirmed.append(numbered)
        await self._transmit(encode(numbered))

    async def take(self, outer: Message) -> Received | None:
        """Return the message in `outer` if it is new and the next in order."""
        match outer:
            case Confirmed(session=self._session, below=below):
                await self._drop_confirmed(below)
            case Confirmed():
                pass
            case Numbered():
                return await self._read_numbered(outer)
            case other:
                self._reader.refuse(self._peer, f"{type(other).__name__} without a number")
        return None

    async def resend(self) -> None:
        """Send the oldest message again, if it was the oldest one at the last call, too.

        Only that one: all of them might fill the queue to a peer that is gone.
        """
        if not self._unconfirmed:
            self._last_oldest = None
            self._repeats = 0
            return
        oldest = self._unconfirmed[0]
        if oldest.number != self._last_oldest:
            self._last_oldest = oldest.number
            self._repeats = 0
            return
        self._repeats += 1
        if self._repeats % WARN_EVERY_REPEATS == 0:
            log.warning(
                "%s has not confirmed a message that was sent %d times",
                self._peer.decode(),
                self._repeats,
            )
        await self._transmit(encode(oldest))

    async def _drop_confirmed(self, below: int) -> None:
        before = len(self._unconfirmed)
        while self._unconfirmed and self._unconfirmed[0].number < below:
            self._unconfirmed.popleft()
        # The peer is there again: what came after may be lost, too.
        if self._repeats and len(self._unconfirmed) < before:
            self._repeats = 0
            for numbered in list(self._unconfirmed):
                await self._transmit(encode(numbered))

    async def _read_numbered(self, numbered: Numbered) -> Received | None:
        # A new session that starts at 0 is a process in the place of another one.
        if numbered.session != self._peer_session and numbered.number == 0:
            self._peer_session = numbered.session
            self._expected_number = 0
        if numbered.session != self._peer_session:
            return None
        is_next = numbered.number == self._expected_number
        if is_next:
            self._expected_number += 1
        await self._transmit(
            encode(Confirmed(session=numbered.session, below=self._expected_number))
        )
        if not is_next:
            return None
        message = self._reader.read(self._peer, numbered.frame)
        if message is None:
            return None
        return Received(self._peer, message, numbered.frame)


class DeliveryClient:
    """The end of a delivery that connects: under `name`, to a process called `peer`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        name: bytes,
        peer: bytes,
        keys: CurveKeys | None,
        heartbeat_seconds: float,
        reader: FrameReader,
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.IDENTITY, name)  # the same after a broken connection
        connect(self._socket, endpoint, keys, heartbeat_seconds)
        self._peer = peer
        self._reader = reader
        self._heartbeat_seconds = heartbeat_seconds
        self._delivery = Delivery(peer, self._transmit, reader)

    async def send(self, message: Message) -> None:
        """Send a message, without waiting for the other end."""
        await self._delivery.send(message)

    async def receive(self) -> Received:
        """Receive the next message of the other end.

        Somebody has to wait here at all times, since confirmations are read here, too.
        """
        while True:
            received = await self._take_next()
            if received is not None:
                return received

    async def resend_loop(self) -> None:
        """Send again what is not confirmed, forever."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._delivery.resend()

    async def run_send_only(self) -> None:
        """Run the loops of an end that nobody sends messages to, forever."""
        await asyncio.gather(self._refuse_messages(), self.resend_loop())

    async def close(self, seconds: float) -> None:
        """Close the connection once all is confirmed, or after so many seconds.

        Nobody may wait in `receive` any more.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._delivery.unconfirmed:
                    await self._take_next()
        self._socket.close(linger=round(1000 * seconds))

    async def _take_next(self) -> Received | None:
        outer = self._reader.read(self._peer, await self._socket.recv())
        if outer is None:
            return None
        return await self._delivery.take(outer)

    async def _refuse_messages(self) -> None:
        while True:
            received = await self.receive()
            self._reader.refuse(
                self._peer, f"{type(received.message).__name__} from one that only hears"
            )

    async def _transmit(self, frame: bytes) -> None:
        # If the queue is full, the peer is gone: the frame is sent again.
        with contextlib.suppress(zmq.Again):
            await self._socket.send(frame, zmq.NOBLOCK)


class DeliveryServer:
    """The end of a delivery that the run's own processes, called `names`, connect to."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        names: Sequence[bytes],
        keys: CurveKeys | None,
        heartbeat_seconds: float,
        reader: FrameReader,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        # Else it drops what does not fit, and that would be sent twice.
        self._socket.set(zmq.SNDHWM, 0)
        bind(self._socket, endpoint, keys, "run", heartbeat_seconds)
        self._reader = reader
        self._heartbeat_seconds = heartbeat_seconds
        self._deliveries = {name: Delivery(name, self._sender_to(name), reader) for name in names}

    async def send(self, name: bytes, message: Message) -> None:
        """Send a message to the process `name`, without waiting for it."""
        await self._deliveries[name].send(message)

    async def receive(self) -> Received:
        """Receive the next message of any of the processes."""
        while True:
            received = await self._take_next()
            if received is not None:
                return received

    async def receive_waiting(self) -> list[Received]:
        """Receive the messages that are here already."""
        messages = []
        while await self._socket.poll(0):
            received = await self._take_next()
            if received is not None:
                messages.append(received)
        return messages

    async def resend_loop(self) -> None:
        """Send again what is not confirmed, forever."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            for delivery in self._deliveries.values():
                await delivery.resend()

    def close(self, linger_seconds: float) -> None:
        """Close the socket; what is on its way has so many seconds to leave."""
        self._socket.close(linger=round(1000 * linger_seconds))

    async def _take_next(self) -> Received | None:
        received = self._reader.take(await self._socket.recv_multipart())
        if received is None:
            return None
        delivery = self._deliveries.get(received.peer)
        if delivery is None:
            self._reader.refuse(
                received.peer,
                f"{type(received.message).__name__} from a process that is not expected here",
            )
            return None
        return await delivery.take(received.message)

    def _sender_to(self, name: bytes) -> Callable[[bytes], Awaitable[None]]:
        async def transmit(frame: bytes) -> None:
            await self._socket.send_multipart([name, frame])

        return transmit
