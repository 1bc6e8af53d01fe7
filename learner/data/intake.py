"""Trajectories of actors: into their groups and into the log, then acknowledged.

All that wait are taken at once: the log costs one call to the system for each write, which an
episode that comes with others shares with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zmq.asyncio

from learner.data.episode_log import EpisodeLog
from learner.data.groups import GroupBuffer
from protocol.codec import FrameReader, Received, encode
from protocol.messages import Ack, EpisodeKey, Message, Refused, Trajectory
from protocol.router import BatchedRouter

NOT_YET = "the learner has asked for no episode yet"
"""What is wrong with an episode that may be sent again."""


class Intake:
    """`arrived` is called after new episodes have been taken in."""

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        log: EpisodeLog,
        buffer: GroupBuffer,
        reader: FrameReader,
        flaw: Callable[[Message], str],
        arrived: Callable[[], None],
    ) -> None:
        """`socket`: the ROUTER to which actors are connected; nobody else uses it while `run` does.

        `flaw`: why a message is to be refused; "" for an episode. Whoever sends one that is refused
        is told.
        """
        self._arrivals = BatchedRouter(socket)
        self._log = log
        self._buffer = buffer
        self._arrived = arrived
        self._reader = reader
        self._flaw = flaw
        self.offsets: dict[EpisodeKey, int] = {}
        """In the log, of training episodes whose group has not left: what a resumed run must find
        again."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            taken = await self._arrivals.receive()
            episodes = [
                received
                for parts in taken
                if (received := self._reader.take(parts)) is not None and self._sound(received)
            ]
            self.take([(episode, frame) for _, episode, frame in episodes])
            acknowledged: dict[bytes, list[EpisodeKey]] = {}
            for peer, episode, _ in episodes:
                acknowledged.setdefault(peer, []).append(episode.key)
            for peer, keys in acknowledged.items():
                self._arrivals.send([peer, encode(Ack(keys=keys))])

    def _sound(self, received: Received) -> bool:
        flaw = self._flaw(received.message)
        if flaw:
            self._reader.refuse(received.peer, flaw)
        if flaw not in ("", NOT_YET) and isinstance(received.message, Trajectory):
            self._arrivals.send(
                [received.peer, encode(Refused(key=received.message.key, why=flaw))]
            )
        return not flaw

    def take(self, episodes: Sequence[tuple[Trajectory, bytes]]) -> None:
        """Take in episodes with the frames they came in; those that are known already, by whatever
        attempt, are left out."""
        new = [(episode.key, frame) for episode, frame in episodes if self._buffer.add(episode)]
        if new:
            offsets = self._log.append([frame for _, frame in new])
            self.offsets.update(
                (key, offset)
                for (key, _), offset in zip(new, offsets, strict=True)
                if not key.evaluation
            )
            self._arrived()

    def forget_left(self) -> None:
        """A resumed run need not find episodes of groups that have been handed out, or dropped."""
        self.offsets = {
            key: offset
            for key, offset in self.offsets.items()
            if not self._buffer.has_left(key.group)
        }

    def resume_from(self) -> int:
        """Offset in the log of the first episode that a resumed run must find again."""
        return min(self.offsets.values(), default=self._log.position)
