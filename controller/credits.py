"""What actors can take, in the order in which they asked."""

from __future__ import annotations

from collections import Counter, deque

CLAIMS = 5
"""Heartbeats in which an actor says that it could take more than we know of, until it is
believed."""


class CreditQueue:
    """First come, first served, episode by episode: an actor that has asked for many waits for its
    second as long as others do.

    Were they served actor by actor, one that asks again before its last request is met would keep
    its place, and when there is little to play, nobody behind it would ever get anything.
    """

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()  # an actor for each episode
        self._of: Counter[bytes] = Counter()
        self._claims: Counter[bytes] = Counter()  # on end, of more than we know of

    def __len__(self) -> int:
        """Episodes that could be taken."""
        return len(self._waiting)

    def add(self, actor: bytes, episodes: int) -> None:
        """It can take so many more."""
        self._waiting.extend([actor] * episodes)
        self._of[actor] += episodes

    def of(self, actor: bytes) -> int:
        """Episodes that this actor could take."""
        return self._of[actor]

    def claimed(self, actor: bytes, episodes: int) -> None:
        """It says, as it does with every heartbeat, that it could take so many.

        When that is more than we know of, and stays so, it is believed: leases were lost with a
        connection; at first they may be on their way. When it is less, a process before it has
        asked for the rest under its name.
        """
        missing = episodes - self._of[actor]
        self._claims[actor] = self._claims[actor] + 1 if missing > 0 else 0
        if missing < 0:
            self._drop(actor, -missing)
        elif self._claims[actor] >= CLAIMS:
            self._claims[actor] = 0
            self.add(actor, missing)

    def _drop(self, actor: bytes, episodes: int) -> None:
        """Forget so many of an actor's requests: the latest."""
        kept = deque()
        for waiting in reversed(self._waiting):
            if waiting == actor and episodes:
                episodes -= 1
                self._of[actor] -= 1
            else:
                kept.appendleft(waiting)
        self._waiting = kept

    def first(self) -> bytes:
        """Whose turn it is. IndexError if nobody waits."""
        return self._waiting[0]

    def served(self) -> None:
        """The first one has been given an episode."""
        actor = self._waiting.popleft()
        self._of[actor] -= 1

    def lost(self, actor: bytes) -> None:
        """It takes nothing any more."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting != actor)
        del self._of[actor], self._claims[actor]
