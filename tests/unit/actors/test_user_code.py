"""Code of environments that raises, hangs or gives anything: it costs its episode, no more."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.episode import encode_trajectory
from envs.base import EnvironmentFailure, Observation, ParsedAction, StepResult
from protocol.codec import decode
from protocol.messages import DropReason, Trajectory
from protocol.validation import AdmissionWindow, Limits, validate_trajectory
from tests.fixtures import ROOT
from tests.fixtures.episodes import LEASE, OneStep, end_step, make_player, take_look_turn
from tests.fixtures.examples import scale_examples

HERE = Path(__file__).relative_to(ROOT)


def first_line_of(function: Callable) -> str:
    """Name the place of the first statement of a function here, as an error does."""
    return f"{HERE}:{function.__code__.co_firstlineno + 1} in {function.__name__}"


@pytest.mark.parametrize("method", ["view", "prompt", "state_key", "parse"])
async def test_environment_that_fails_in_any_method_costs_the_episode_not_the_actor(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    """An environment that fails in whatever it is asked costs the episode and not the actor."""

    def fails(*_: object):
        raise KeyError("x")

    monkeypatch.setattr(OneStep, method, fails)
    trajectory = await make_player(take_look_turn, OneStep(end_step)).play(LEASE)
    assert (trajectory.drop_reason, trajectory.detail) == (
        DropReason.ENV_ERROR,
        f"KeyError: 'x' ({first_line_of(fails)})",
    )


class OwnEnvironment(OneStep):
    """An environment whose own files are this one."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("an error whose words fail")


RAISED = [
    EnvironmentFailure("server down"),
    KeyError("x"),
    TimeoutError("of its own"),
    StopIteration(),
    SystemExit(2),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    CancelledError(),
    ValueError("page \udce9 broke"),
    ValueError("x" * 10_000_000),
    Mute(),
    ExceptionGroup("both", [ValueError("first"), KeyError("second")]),
    RecursionError(),
]


@pytest.mark.parametrize("method", ["start", "view", "prompt", "state_key", "parse", "step"])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_invariant_3_an_environment_error_is_a_dropped_episode_never_a_reward(
    error: BaseException, method: str
):
    def fails(*_: object):
        raise error

    environment = OneStep(end_step)
    setattr(environment, method, fails)
    async with asyncio.timeout(4):  # less than the step's timeout: it is said at once
        trajectory = await make_player(take_look_turn, environment).play(LEASE)
    sent = decode(encode_trajectory(trajectory))
    assert sent.drop_reason is DropReason.ENV_ERROR and sent.turns == [] and len(sent.detail) < 800
    assert sent.detail.startswith(f"{type(error).__name__}: ")
    assert f"({first_line_of(fails)})" in sent.detail


async def test_an_error_inside_a_library_is_told_by_the_last_line_of_the_users_own_file():
    def step() -> StepResult:
        return json.loads("{")

    detail = (await make_player(take_look_turn, OwnEnvironment(step)).play(LEASE)).detail
    assert detail.startswith("JSONDecodeError: ")
    assert detail.endswith(f"({first_line_of(step)})")


@pytest.mark.slow
async def test_steps_that_never_return_do_not_keep_later_episodes_from_their_own():
    never = threading.Event()
    for _ in range(40):  # more than a pool of threads has
        player = make_player(take_look_turn, OneStep(never.wait), step_timeout=0.02)
        hung = await player.play(LEASE)
        assert hung.drop_reason is DropReason.ENV_ERROR
    played = await make_player(take_look_turn, OneStep(end_step)).play(LEASE)
    never.set()
    assert played.drop_reason is None and played.success


async def test_a_step_that_hangs_is_an_environment_error_that_names_the_timeout():
    release = threading.Event()

    def hang() -> None:
        release.wait()

    player = make_player(take_look_turn, OwnEnvironment(hang), step_timeout=0.05)
    trajectory = await player.play(LEASE)
    release.set()
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert f"actor.step_timeout), at {HERE}:" in trajectory.detail


class Threaded(OneStep):
    """Notes the thread of each call."""

    def __init__(self, step) -> None:
        super().__init__(step)
        self.threads: list[int] = []

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if name in ("start", "view", "prompt", "state_key", "parse", "step", "close"):
            super().__getattribute__("threads").append(threading.get_ident())
        return found

    def close(self) -> None:
        self.closed = threading.get_ident()


async def test_all_of_an_episode_runs_in_one_thread_which_is_not_the_loops():
    environment = Threaded(end_step)
    await make_player(take_look_turn, environment).play(LEASE)
    assert len(set(environment.threads)) == 1 and environment.closed in environment.threads
    assert threading.get_ident() not in environment.threads


def fail_to_step() -> StepResult:
    raise KeyError("x")


@pytest.mark.parametrize(
    "close", [fail_to_step, lambda: sys.exit(1), lambda: threading.Event().wait()]
)
async def test_a_close_that_raises_or_never_returns_changes_nothing(close):
    environment = OneStep(end_step)
    environment.close = close
    assert (await make_player(take_look_turn, environment, step_timeout=0.2).play(LEASE)).success


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.text(alphabet="\ud800\udfffa"),
        st.binary(),
        st.sampled_from(
            [
                10**400,
                np.str_("x"),
                np.array([1, 2]),
                np.float32(1),
                np.True_,
                object(),
                OneStep.observation,
                end_step(),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(StepResult, st.builds(Observation, inner, st.tuples(inner)), inner, inner, inner),
        st.builds(ParsedAction, inner, inner),
    ),
    max_leaves=6,
)
METHODS = [
    "start",
    "view",
    "prompt",
    "parse",
    "state_key",
    "step",
    "close",
    "task",
    "task_type",
    "scores",
    "observation",
]


class Arbitrary(OneStep):
    """Raises, or gives, in some of what it is asked, what it was made with.

    In the rest it is as it should be.
    """

    def __init__(self, behavior: dict[str, tuple[bool, object]]) -> None:
        super().__init__(end_step)
        self._behavior = behavior

    def __getattribute__(self, name: str):
        behavior = super().__getattribute__("__dict__").get("_behavior", {})
        if name not in behavior:
            return super().__getattribute__(name)
        raises, value = behavior[name]

        def act(*_: object) -> object:
            if raises:
                raise value
            return value

        return act if callable(getattr(OneStep, name, None)) or name == "close" else act()


@pytest.mark.slow
@given(
    st.dictionaries(
        st.sampled_from(METHODS),
        st.one_of(
            st.tuples(st.just(True), st.sampled_from(RAISED)), st.tuples(st.just(False), ANYTHING)
        ),
    )
)
@scale_examples(150)
def test_invariant_10_user_code_that_raises_ends_in_one_episode_the_learner_takes(
    behavior: dict[str, tuple[bool, object]],
):
    """Invariant 10: what user code raises or gives ends in one episode that the learner takes."""

    async def play() -> Trajectory:
        return await make_player(take_look_turn, Arbitrary(behavior)).play(LEASE)

    trajectory = decode(encode_trajectory(asyncio.run(play())))
    assert trajectory.key == LEASE.key
    limits = Limits(vocabulary=600, context=4000, group_size=2)
    window = AdmissionWindow(
        first_group=3, end_group=4, evaluations=0, evaluation_episodes=0, version=0
    )
    assert validate_trajectory(trajectory, limits, window) is None
