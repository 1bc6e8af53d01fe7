"""Trajectories of actors: into their groups and into the log, then acknowledged.

All that wait are taken at once: the log costs one call to the system for each write, which an
episode that comes with others shares with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from learner.data.episode_log import EpisodeLog
from learner.data.groups import GroupBuffer
from protocol.codec import FrameReader, Received, encode
from protocol.messages import Ack, EpisodeKey, Refused, Trajectory
from protocol.router import BatchedRouter

NOT_YET = "the learner has asked for no episode yet"
"""The flaw of an episode that may be sent again."""


class EpisodeStore:
    """Episodes in their groups and in the log, and where a resumed run finds them again."""

    def __init__(self, log: EpisodeLog, buffer: GroupBuffer) -> None:
        self._log = log
        self._buffer = buffer
        self.offsets: dict[EpisodeKey, int] = {}
        """Offset in the log of each training episode whose group is not closed."""

    def add(self, episodes: Sequence[tuple[Trajectory, bytes]]) -> bool:
        """Take in episodes with the frames they came in; False if none of them is new.

        Those that are known already, by whatever lease, are left out.
        """
        new = [(episode.key, frame) for episode, frame in episodes if self._buffer.add(episode)]
        if not new:
            return False
        offsets = self._log.append([frame for _, frame in new])
        for (key, _), offset in zip(new, offsets, strict=True):
            if not key.evaluation:
                self.offsets[key] = offset
        return True

    def restore(self, episode: Trajectory, offset: int) -> None:
        """Take in an episode that the log has; evaluations are played again."""
        if not episode.key.evaluation and self._buffer.add(episode):
            self.offsets[episode.key] = offset

    def forget_closed(self) -> None:
        """Forget where episodes of closed groups are: a resumed run need not find them."""
        self.offsets = {
            key: offset
            for key, offset in self.offsets.items()
            if key.group not in self._buffer.closed
        }

    def resume_offset(self) -> int:
        """Return the offset in the log of the first episode that a resumed run must find again."""
        return min(self.offsets.values(), default=self._log.position)


class Arrivals:
    """Wakes whoever waits for episodes, when new ones have been taken in."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Set the event of everybody that waits."""
        for event in self._waiting:
            event.set()

    @contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at each arrival; whoever waits for it clears it."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)


class _Delivery(NamedTuple):
    """An episode, the actor that delivered it, and the frame that it came in."""

    peer: bytes
    episode: Trajectory
    frame: bytes


class Intake:
    """Takes in what actors deliver, and acknowledges it once it stands in the log."""

    def __init__(
        self,
        router: BatchedRouter,
        store: EpisodeStore,
        buffer: GroupBuffer,
        arrivals: Arrivals,
        reader: FrameReader,
        find_flaw: Callable[[Trajectory], str | None],
    ) -> None:
        """`router`: the socket to which actors are connected; nobody else uses it meanwhile.

        `find_flaw` says why an episode is to be refused; None for a sound one. Whoever sends one
        that is refused is told.
        """
        self._router = router
        self._store = store
        self._buffer = buffer
        self._arrivals = arrivals
        self._reader = reader
        self._find_flaw = find_flaw

    async def run(self) -> None:
        """Take in episodes until canceled."""
        while True:
            episodes = self._read(await self._router.receive())
            self.take([(episode, frame) for _, episode, frame in episodes])
            keys_by_peer: dict[bytes, list[EpisodeKey]] = {}
            for peer, episode, _ in episodes:
                keys_by_peer.setdefault(peer, []).append(episode.key)
            for peer, keys in keys_by_peer.items():
                self._router.send([peer, encode(Ack(keys=keys))])

    def take(self, episodes: Sequence[tuple[Trajectory, bytes]]) -> None:
        """Take in episodes with the frames they came in, and wake those that wait for them."""
        if self._store.add(episodes):
            self._buffer.check_playable()
            self._arrivals.notify()

    def _read(self, messages: Sequence[list[bytes]]) -> list[_Delivery]:
        """Return the sound episodes among messages; refuse the others."""
        deliveries = []
        for parts in messages:
            received = self._reader.take(parts)
            if received is None:
                continue
            episode = self._accept(received)
            if episode is not None:
                deliveries.append(_Delivery(received.peer, episode, received.frame))
        return deliveries

    def _accept(self, received: Received) -> Trajectory | None:
        """Return a sound episode; refuse anything else.

        The sender of an episode that is refused is told, unless it may come again.
        """
        peer, message, _ = received
        if not isinstance(message, Trajectory):
            self._reader.refuse(peer, f"{type(message).__name__} is not for the learner")
            return None
        flaw = self._find_flaw(message)
        if not flaw:
            return message
        self._reader.refuse(peer, flaw)
        if flaw != NOT_YET:
            self._router.send([peer, encode(Refused(key=message.key, why=flaw))])
        return None
