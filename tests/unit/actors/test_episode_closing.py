"""What an episode holds open is closed once, in the thread that opened it, however it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

import actors.episode
from envs.base import Observation, StepResult
from protocol.messages import DropReason, TurnRequest
from tests.fixtures.episodes import (
    LEASE,
    OneStep,
    TakeTurn,
    end_step,
    make_player,
    take_look_turn,
)
from tests.fixtures.messages import make_turn_failed

NOTHING: Mapping[str, Any] = {}


class Watched(OneStep):
    """Notes the threads that start and close its only episode."""

    def __init__(self, step: Callable[[], Any] = end_step) -> None:
        super().__init__(step)
        self.started: list[int] = []
        self.closed: list[int] = []

    def start(self, split, index, seed):
        self.started.append(threading.get_ident())
        return self

    def close(self) -> None:
        self.closed.append(threading.get_ident())

    def assert_closed(self) -> None:
        assert len(self.started) == 1 and self.closed == self.started


def result(text: str = "text", reward: Any = 0.0, **flags: bool) -> Callable[[], StepResult]:
    """A step with this result."""
    flags = {"done": False, "success": False} | flags
    return lambda: StepResult(Observation(text, ("look",)), reward, **flags)


def fails(*_: object) -> Any:
    raise SystemExit(2)


async def find_no_engine(request: TurnRequest) -> Any:
    return make_turn_failed(request)


async def cancel_turn(request: TurnRequest) -> Any:
    return make_turn_failed(request, DropReason.CANCELED)


class End(NamedTuple):
    """A way in which an episode can end."""

    step: Callable[[], Any] = end_step
    methods: Mapping[str, Any] = NOTHING
    """What the environment has in place of its own."""
    take_turn: TakeTurn = take_look_turn
    max_prompt_tokens: int = 100
    reason: DropReason | None = DropReason.ENV_ERROR


ENDS = {
    "solved": End(reason=None),
    "not solved": End(result(done=True), reason=None),
    "cut off by the environment": End(result(done=True, truncated=True), reason=None),
    "outgrows the context": End(
        result("x " * 1000), {"prompt": lambda view: view.observation.text}, reason=None
    ),
    "begins beyond the context": End(max_prompt_tokens=0),
    "without an end": End(result()),
    "no engine": End(take_turn=find_no_engine, reason=DropReason.ENGINE_ERROR),
    "no valid text, task": End(methods={"task": "\udce9"}),
    "no valid text, observation": End(result("\udce9")),
    "no number": End(result(reward=None)),
    **{
        f"{method} fails": End(methods={method: fails})
        for method in ("view", "prompt", "state_key", "parse", "step")
    },
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_episode_is_closed_once_in_its_thread_however_it_ends(
    end: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(actors.episode, "MAX_TURNS", 3)
    way = ENDS[end]
    environment = Watched(way.step)
    for name, value in way.methods.items():
        setattr(environment, name, value)
    player = make_player(way.take_turn, environment, max_prompt_tokens=way.max_prompt_tokens)
    assert (await player.play(LEASE)).drop_reason is way.reason
    environment.assert_closed()


async def test_an_episode_that_the_controller_cancels_is_closed():
    environment = Watched()
    assert await make_player(cancel_turn, environment).play(LEASE) is None
    environment.assert_closed()


async def test_an_episode_that_is_broken_off_while_it_waits_for_a_turn_is_closed():
    environment = Watched()
    asked = asyncio.Event()

    async def never_answer(request: TurnRequest) -> Any:
        asked.set()
        await asyncio.Event().wait()

    player = make_player(never_answer, environment)
    playing = asyncio.create_task(player.play(LEASE))
    await asked.wait()
    playing.cancel()
    await asyncio.wait({playing})
    assert playing.cancelled()
    await player.wait_closed(5)
    environment.assert_closed()


async def test_of_a_start_that_fails_nothing_is_closed():
    environment = Watched()
    environment.start = fails
    assert (await make_player(take_look_turn, environment).play(LEASE)).drop_reason
    assert environment.closed == []


class Hanging(Watched):
    """Hangs in one of its methods until it is released."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()
        self._run = getattr(self, method)
        setattr(self, method, self._hang)

    def _hang(self, *arguments: Any) -> Any:
        self.entered.set()
        self.release.wait()
        return self._run(*arguments)


CALLS = ["start", "view", "prompt", "state_key", "parse", "step", "close"]


@pytest.mark.parametrize("method", CALLS)
async def test_an_episode_that_is_too_slow_is_closed_once_it_lets_go(method: str):
    environment = Hanging(method)
    player = make_player(take_look_turn, environment, step_timeout=0.05)
    trajectory = await player.play(LEASE)
    if method == "close":
        assert trajectory.success  # it is over already
    else:
        assert trajectory.drop_reason is DropReason.ENV_ERROR
        assert "actor.step_timeout" in trajectory.detail
    assert environment.closed == []
    environment.release.set()
    await player.wait_closed(5)
    environment.assert_closed()


@pytest.mark.parametrize("method", CALLS)
async def test_an_episode_that_is_broken_off_is_closed_once_it_lets_go(method: str):
    environment = Hanging(method)
    player = make_player(take_look_turn, environment)
    playing = asyncio.create_task(player.play(LEASE))
    await asyncio.to_thread(environment.entered.wait, 5)
    playing.cancel()
    await asyncio.wait({playing})
    assert playing.cancelled() and environment.closed == []
    environment.release.set()
    await player.wait_closed(5)
    environment.assert_closed()
