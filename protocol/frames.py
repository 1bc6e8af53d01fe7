"""What a frame may hold: any message, and those that see to it that others arrive (protocol/delivery.py)."""

from __future__ import annotations

from protocol.messages import (
    Ack,
    Alive,
    Applied,
    Credit,
    EpisodeEnded,
    Evaluate,
    GroupsDropped,
    Heartbeat,
    Hello,
    LearnerState,
    Lease,
    Load,
    Message,
    Published,
    Refused,
    Revoked,
    ShardState,
    Shutdown,
    SignalFrame,
    Stats,
    Steer,
    Trajectory,
    TurnFailed,
    TurnRequest,
    TurnResult,
    Welcome,
)  # fmt: skip


class Numbered(Message):
    """A message that is sent again until it is confirmed."""

    session: bytes  # of the process that sends it
    number: int  # 0, 1, ... in this session
    frame: bytes  # the message, encoded


class Confirmed(Message):
    """The messages of a session that have arrived: those below a number."""

    session: bytes
    below: int


ANY = (
    Hello | Welcome | Alive | Lease | Credit | Heartbeat | Shutdown | TurnRequest | TurnResult | TurnFailed | Trajectory | Ack
    | Refused | EpisodeEnded | LearnerState | Published | GroupsDropped | Evaluate | Applied | ShardState | Load | Revoked | SignalFrame
    | Steer | Stats | Numbered | Confirmed
)  # fmt: skip
