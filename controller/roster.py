"""The actors that the controller hears of, and what each has said last. No IO, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from controller.admission import ActorReport
from protocol.messages import Heartbeat


@dataclass
class ActorRoster:
    """The actors that live."""

    last_seen: dict[bytes, float] = field(default_factory=dict)
    """When each was heard of last."""
    reports: dict[bytes, ActorReport] = field(default_factory=dict)
    """The leases that each has said last that it plays."""
    _loop_lags: dict[bytes, float] = field(default_factory=dict)
    """Seconds in each actor's last heartbeat, since they were taken."""

    def __len__(self) -> int:
        """Count the actors that live."""
        return len(self.last_seen)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the names of those that live, even while some are forgotten."""
        return iter(list(self.last_seen))

    def __contains__(self, actor: object) -> bool:
        return actor in self.last_seen

    def see(self, actor: bytes, now: float) -> None:
        """Take note that something of the actor has come."""
        self.last_seen[actor] = now

    def hear(self, actor: bytes, heartbeat: Heartbeat, now: float) -> None:
        """Take note of an actor's heartbeat."""
        self.reports[actor] = ActorReport(now, set(heartbeat.playing))
        self._loop_lags[actor] = heartbeat.loop_lag

    def silent_since(self, horizon: float) -> list[bytes]:
        """Actors that were heard of last before `horizon`."""
        return [actor for actor, seen in self.last_seen.items() if seen < horizon]

    def forget(self, actor: bytes) -> None:
        """Forget a lost actor."""
        self.last_seen.pop(actor, None)
        self.reports.pop(actor, None)
        self._loop_lags.pop(actor, None)

    def take_loop_lag(self) -> float | None:
        """Return the worst lag of the heartbeats since the last call, in seconds.

        It is None if there were none.
        """
        worst = max(self._loop_lags.values(), default=None)
        self._loop_lags.clear()
        return worst
