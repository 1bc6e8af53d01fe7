"""Messages that arrive once and in their order, whatever becomes of the connection between two
processes.

ZeroMQ connects again by itself, and what was on its way over the old connection is lost without a
word. Here each message has a number, the other end confirms up to where it has all, and what is not
confirmed is sent again. It is for what is said once and has to be heard. Nothing of it is needed
where a state is told anew all the time, or an answer confirms the question (an actor's turns and
episodes).
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

SAY_EVERY = 30
"""Times that a message is sent again until it is said once more that nobody confirms it."""


class Delivery:
    """What is said to one peer, and what it says: no sockets, no clock."""

    def __init__(
        self, peer: bytes, send: Callable[[bytes], Awaitable[None]], reader: FrameReader
    ) -> None:
        """`send`: a frame on its way to the peer, or not; `reader`: counts what is no message."""
        self._peer = peer
        self._send = send
        self._reader = reader
        self._session = secrets.token_bytes(8)
        self._next = 0
        self._unconfirmed: deque[Numbered] = deque()
        self._oldest = -1  # of the unconfirmed ones, when it was last looked
        self._repeats = 0  # of that one
        self._their_session = b""
        self._expected = 0

    @property
    def unconfirmed(self) -> int:
        """Messages that the peer may not have."""
        return len(self._unconfirmed)

    async def send(self, message: Message) -> None:
        """Send a message, and keep it until it is confirmed."""
        numbered = Numbered(session=self._session, number=self._next, frame=encode(message))
        self._next += 1
        self._unconfirmed.append(numbered)
        await self._send(encode(numbered))

    async def take(self, outer: Message) -> Received | None:
        """What the peer says, if that is a message which has not come before, and in its order."""
        match outer:
            case Confirmed(session=self._session, below=below):
                await self._confirmed(below)
            case Confirmed():
                pass
            case Numbered() if (frame := await self._new(outer)) is not None:
                message = self._reader.read(self._peer, frame)
                return None if message is None else Received(self._peer, message, frame)
            case Numbered():
                pass
            case other:
                self._reader.refuse(self._peer, f"{type(other).__name__} without a number")
        return None

    async def resend(self) -> None:
        """Send the oldest message again, if it is the same one as when this was last called: all of
        them might fill the queue to a peer that is gone."""
        oldest = self._unconfirmed[0].number if self._unconfirmed else -1
        self._repeats = self._repeats + 1 if oldest == self._oldest else 0
        self._oldest = oldest
        if oldest >= 0 and self._repeats:
            if self._repeats % SAY_EVERY == 0:
                log.warning(
                    "%s has not confirmed a message that was sent %d times",
                    self._peer.decode(),
                    self._repeats,
                )
            await self._send(encode(self._unconfirmed[0]))

    async def _confirmed(self, below: int) -> None:
        before = len(self._unconfirmed)
        while self._unconfirmed and self._unconfirmed[0].number < below:
            self._unconfirmed.popleft()
        if (
            self._repeats and len(self._unconfirmed) < before
        ):  # it is there again: what came after may be lost, too
            self._repeats = 0
            for numbered in list(self._unconfirmed):
                await self._send(encode(numbered))

    async def _new(self, numbered: Numbered) -> bytes | None:
        if (
            numbered.session != self._their_session and numbered.number == 0
        ):  # a process in the place of another one
            self._their_session = numbered.session
            self._expected = 0
        if numbered.session != self._their_session:
            return None
        new = numbered.number == self._expected
        self._expected += new
        await self._send(encode(Confirmed(session=numbered.session, below=self._expected)))
        return numbered.frame if new else None


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
        self._delivery = Delivery(peer, self._hand_over, reader)

    async def send(self, message: Message) -> None:
        """Never waits for the other end."""
        await self._delivery.send(message)

    async def receive(self) -> Received:
        """The next message of the other end.

        Confirmations are read here, too: somebody has to wait here.
        """
        while True:
            outer = self._reader.read(self._peer, await self._socket.recv())
            if outer is not None and (received := await self._delivery.take(outer)) is not None:
                return received

    async def resend_loop(self) -> None:
        """Forever: send again what is not confirmed."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._delivery.resend()

    async def run_send_only(self) -> None:
        """Forever: the loops of an end that is told nothing."""
        await asyncio.gather(self._hear_nothing(), self.resend_loop())

    async def close(self, seconds: float) -> None:
        """Once all is confirmed, or after so many seconds; nobody may wait in `receive` any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._delivery.unconfirmed:
                    outer = self._reader.read(self._peer, await self._socket.recv())
                    if outer is not None:
                        await self._delivery.take(outer)
        self._socket.close(linger=round(1000 * seconds))

    async def _hear_nothing(self) -> None:
        while True:
            received = await self.receive()
            self._reader.refuse(
                self._peer, f"{type(received.message).__name__} from one that only hears"
            )

    async def _hand_over(self, frame: bytes) -> None:
        with contextlib.suppress(
            zmq.Again
        ):  # the queue to a peer that is gone is full: it is sent again
            await self._socket.send(frame, zmq.NOBLOCK)


class DeliveryServer:
    """The end of a delivery that is connected to: by processes called `names`, which are the run's
    own."""

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
        self._socket.set(
            zmq.SNDHWM, 0
        )  # else it drops what does not fit, and that would be sent twice
        bind(self._socket, endpoint, keys, "run", heartbeat_seconds)
        self._reader = reader
        self._heartbeat_seconds = heartbeat_seconds
        self._deliveries = {name: Delivery(name, self._sender(name), reader) for name in names}

    async def send(self, name: bytes, message: Message) -> None:
        """Never waits for the other end."""
        await self._deliveries[name].send(message)

    async def receive(self) -> Received:
        """The next message of any of them."""
        while True:
            if (received := await self._take()) is not None:
                return received

    async def receive_waiting(self) -> list[Received]:
        """The messages that are here already."""
        found = []
        while await self._socket.poll(0):
            received = await self._take()
            if received is not None:
                found.append(received)
        return found

    async def resend_loop(self) -> None:
        """Forever: send again what is not confirmed."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            for delivery in self._deliveries.values():
                await delivery.resend()

    def close(self, linger_seconds: float) -> None:
        self._socket.close(linger=round(1000 * linger_seconds))

    async def _take(self) -> Received | None:
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

    def _sender(self, name: bytes) -> Callable[[bytes], Awaitable[None]]:
        async def send(frame: bytes) -> None:
            await self._socket.send_multipart([name, frame])

        return send
