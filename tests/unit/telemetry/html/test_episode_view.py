"""Episodes as pages show them."""

from __future__ import annotations

from controller.responses import dropped_episode
from protocol.messages import DropReason, EpisodeKey
from telemetry.html.episode_view import (
    describe_outcome,
)


def test_an_episode_that_was_dropped_is_shown_with_the_reason() -> None:
    def describe(detail: str) -> str:
        return describe_outcome(dropped_episode(EpisodeKey(0, 0), DropReason.ENV_ERROR, detail))

    assert (
        describe(detail="no room") == "dropped (env_error: no room)"
        and describe(detail="") == "dropped (env_error)"
    )
