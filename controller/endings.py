"""Turns and episodes that came to nothing, as they are told to whoever waits for them."""

from __future__ import annotations

from protocol.messages import DropReason, EpisodeKey, Trajectory, TurnFailed, TurnRequest


def failed(request: TurnRequest, reason: DropReason, detail: str) -> TurnFailed:
    """For the actor that asked for the turn."""
    return TurnFailed(
        key=request.key, attempt=request.attempt, turn=request.turn, reason=reason, detail=detail
    )


def dropped(key: EpisodeKey, reason: DropReason, detail: str) -> Trajectory:
    """For the learner, in place of the episode."""
    return Trajectory(
        key=key,
        attempt=-1,
        task_index=-1,
        task_type="",
        task="",
        success=False,
        turns=[],
        dropped=reason,
        detail=detail,
    )
