"""Contents of a frame: any message, and those that see to it that others arrive.

protocol/delivery.py uses the latter.
"""

from __future__ import annotations

from protocol.messages import (
    Ack,
    Credit,
    EnginesAsleep,
    EpisodeEnded,
    Evaluate,
    ForceTokens,
    GroupsDropped,
    Heartbeat,
    HeartbeatAck,
    Hello,
    LearnerReady,
    Lease,
    LoadWeights,
    Message,
    Refused,
    Revoked,
    ShardState,
    Shutdown,
    SignalFrame,
    SleepEngines,
    Stats,
    TasksPlayed,
    Trajectory,
    TurnFailed,
    TurnRequest,
    TurnResult,
    WeightsApplied,
    WeightsPublished,
    Welcome,
)


class Numbered(Message, frozen=True):
    """A message that is sent again until it is confirmed."""

    session: bytes  # of the process that sends it
    number: int  # 0, 1, ... in this session
    frame: bytes  # the message, encoded


class Confirmed(Message, frozen=True):
    """Says which messages of a session have arrived: those below a number."""

    session: bytes
    below: int


AnyMessage = (
    Hello
    | Welcome
    | HeartbeatAck
    | Lease
    | Credit
    | Heartbeat
    | Shutdown
    | TurnRequest
    | TurnResult
    | TurnFailed
    | Trajectory
    | Ack
    | Refused
    | EpisodeEnded
    | LearnerReady
    | WeightsPublished
    | GroupsDropped
    | TasksPlayed
    | Evaluate
    | WeightsApplied
    | SleepEngines
    | EnginesAsleep
    | ShardState
    | LoadWeights
    | Revoked
    | SignalFrame
    | ForceTokens
    | Stats
    | Numbered
    | Confirmed
)
