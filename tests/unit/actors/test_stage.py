"""A value of a wrong type that an environment gives drops the episode, and is named."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from actors.episode import encode_trajectory
from envs.base import Observation, ParsedAction, StepResult
from protocol.codec import decode
from protocol.messages import DropReason, Trajectory
from tests.fixtures.episodes import LEASE, OneStep, make_player, take_look_turn

NO_NUMBERS = [nan, inf, 10**400, None, "1.0", 1j, np.array([1.0, 2.0])]
NO_FLAGS = [None, "False", 2, nan, np.array([True, False]), []]
NO_TEXTS = [None, b"bytes", 3, "x\ud800"]
OF_STEPS = ("observation", "reward", "done", "success", "truncated")
"""Names of what a step gives; other names are of the environment."""


async def play_with(**changed: object) -> Trajectory:
    """Play an episode of one step in which these things, by name, are others."""
    step = {name: changed.pop(name) for name in OF_STEPS if name in changed}
    fields = {"observation": OneStep.observation, "reward": 1.0, "done": True, "success": True}
    environment = OneStep(lambda: StepResult(**fields | step))
    vars(environment).update(changed)
    trajectory = await make_player(take_look_turn, environment).play(LEASE)
    assert decode(encode_trajectory(trajectory)).key == LEASE.key
    return trajectory


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        *(("reward", {"reward": value}) for value in [*NO_NUMBERS, -1e300]),
        *(("score price", {"scores": {"price": value}}) for value in NO_NUMBERS),
        *(
            ("scores", {"scores": value})
            for value in (None, [("price", 1.0)], {str(i): 0.0 for i in range(101)})
        ),
        *(("the name of a score", {"scores": {value: 1.0}}) for value in ("x\ud800", "x" * 201)),
        *(("done", {"done": value}) for value in NO_FLAGS),
        *(("success", {"success": value}) for value in NO_FLAGS),
        *(("truncated", {"truncated": value}) for value in NO_FLAGS),
        *(("task", {"task": value}) for value in NO_TEXTS),
        *(("task_type", {"task_type": value}) for value in [*NO_TEXTS, "x" * 201]),
        *(("state_key()", {"state_key": lambda value=value: value}) for value in NO_TEXTS),
        *(("prompt()", {"prompt": lambda view, value=value: value}) for value in NO_TEXTS),
        *(
            ("action", {"parse": lambda *_, value=value: ParsedAction(value, valid=True)})
            for value in [*NO_TEXTS, "x" * 2**21]
        ),
        *(
            ("valid", {"parse": lambda *_, value=value: ParsedAction("look", value)})
            for value in NO_FLAGS
        ),
        ("parse()", {"parse": lambda *_: "look"}),
        *(
            ("observation.text", {"done": False, "observation": Observation(value, ())})
            for value in NO_TEXTS
        ),
        *(
            ("observation.admissible", {"done": False, "observation": Observation("text", value)})
            for value in (None, "look", [3], {"look": 1})
        ),
        ("observation", {"done": False, "observation": "text"}),
    ],
)
async def test_episode_with_a_value_of_a_wrong_type_is_dropped_and_the_value_named(
    name: str, changed: dict
):
    """A value that is no number, text or flag where one belongs drops the episode, and is named."""
    trajectory = await play_with(**changed)
    assert (
        trajectory.drop_reason is DropReason.ENV_ERROR
        and name in trajectory.detail
        and len(trajectory.detail) < 700
    )


async def test_numbers_of_numpy_are_numbers():
    environment = OneStep(
        lambda: StepResult(OneStep.observation, np.float32(0.5), done=np.True_, success=np.True_)
    )
    environment.scores = {"price": np.int64(2), 7: 1}
    player = make_player(take_look_turn, environment)
    trajectory = decode(encode_trajectory(await player.play(LEASE)))
    assert (trajectory.turns[0].reward, trajectory.success, trajectory.scores) == (
        0.5,
        True,
        {"price": 2.0, "7": 1.0},
    )
