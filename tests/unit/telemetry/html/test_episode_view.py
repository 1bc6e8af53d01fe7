"""Episodes as pages show them."""

from __future__ import annotations

import pytest

from controller.responses import dropped_episode
from protocol.arrays import INT32, pack
from protocol.messages import DropReason, EpisodeKey
from telemetry.html.episode_view import describe_outcome, list_prompts
from tests.fixtures.messages import make_response, make_trajectory, make_turn


def test_an_episode_that_was_dropped_is_shown_with_the_reason() -> None:
    def describe(detail: str) -> str:
        return describe_outcome(dropped_episode(EpisodeKey(0, 0), DropReason.ENV_ERROR, detail))

    assert (
        describe(detail="no room") == "dropped (env_error: no room)"
        and describe(detail="") == "dropped (env_error)"
    )


@pytest.mark.parametrize(
    ("prompt", "rewrites", "shown"),
    [
        ([1, 2, 3, 9, 9], 0, ("what the agent was shown since", [9, 9])),
        ([1, 2, 9, 9], 0, ("what the agent was shown", [1, 2, 9, 9])),
        (
            [1, 2, 9, 9],
            1,
            ("what the agent was shown, the past as the chat template rewrote it", [1, 2, 9, 9]),
        ),
    ],
    ids=["goes on", "another prompt", "rewritten"],
)
def test_list_prompts_has_only_what_is_new(
    prompt: list[int], rewrites: int, shown: tuple[str, list[int]]
) -> None:
    first = make_turn(make_response(tokens=pack([3], INT32)), prompt=pack([1, 2], INT32))
    episode = make_trajectory(
        turns=[first, make_turn(prompt=pack(prompt, INT32))], rewrites=rewrites
    )
    assert list_prompts(episode) == [("what the agent was shown", [1, 2]), shown]
