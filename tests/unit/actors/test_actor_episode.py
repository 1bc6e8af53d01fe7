"""One episode in an actor, with the environment's own expert in the place of the policy."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from concurrent.futures import CancelledError
from functools import cache
from math import inf, nan
from typing import ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

import actors.episode
from actors.episode import EpisodePlayer, digest, encode_trajectory
from config import TinySection
from envs.base import EnvironmentFailure, Observation, ParsedAction, StepResult
from envs.play import play_expert_episode
from envs.registry import make_environment
from learner.data.rollout_metrics import evaluation_metrics, rollout_metrics
from learner.warm_start.tiny import CHAT_TEMPLATE, train_tokenizer
from protocol.arrays import FLOAT32, INT32, UINT8, pack, unpack
from protocol.codec import decode, encode
from protocol.messages import (
    DropReason,
    EpisodeKey,
    Lease,
    Response,
    Span,
    StopReason,
    Trajectory,
    TurnFailed,
    TurnResult,
)
from protocol.prompting import Prompter
from protocol.validation import AdmissionWindow, Limits, validate_trajectory

LEASE = Lease(key=EpisodeKey(3, 1), lease_attempt=0, split="held_out", task_index=5, seed=7)


@cache
def environment():
    return make_environment("alfworld")


@cache
def tokenizer():
    turns = [
        turn
        for i in range(20)
        for turn in play_expert_episode(environment(), "train", i, random.Random(i)).turns
    ]
    return train_tokenizer(TinySection(vocabulary=600), turns)


def prompter() -> Prompter:
    return Prompter(tokenizer().to_str().encode(), CHAT_TEMPLATE)


def result_of(request, text: str) -> TurnResult:
    tokens = tokenizer().encode(text + "<|im_end|>", add_special_tokens=False).ids
    kept = Response(
        tokens=pack(tokens, INT32),
        log_probs=pack([-0.1] * len(tokens), FLOAT32),
        mask=pack([1] * len(tokens), UINT8),
        spans=[Span(0, len(tokens), 0)],
        uncertainty=b"",
        signals=b"",
        events=[],
        stop=StopReason.END,
        score=0.5,
        thinking=0,
    )
    return TurnResult(
        key=request.key,
        lease_attempt=request.lease_attempt,
        turn_index=request.turn_index,
        kept=kept,
        rejected=[],
    )


def player(take_turn, env=None, **settings) -> EpisodePlayer:
    settings = {"step_timeout": 5.0, "max_prompt_tokens": 4000, "anchor_texts": False} | settings
    return EpisodePlayer(env or environment(), prompter(), take_turn, **settings)


def expert_turns(lease: Lease):
    """A policy that answers as the expert does, and what it was asked."""
    script = play_expert_episode(
        environment(), lease.split, lease.task_index, random.Random(0)
    ).turns
    asked = []

    async def take_turn(request):
        asked.append(prompter().decode(unpack(request.prompt, INT32).tolist()))
        return result_of(request, script[request.turn_index][1])

    return take_turn, asked, script


async def test_the_expert_wins_and_every_turn_is_recorded():
    take_turn, _asked, script = expert_turns(LEASE)
    trajectory = await player(take_turn).play(LEASE)
    assert trajectory.success and trajectory.drop_reason is None
    assert len(trajectory.turns) == len(script) and all(turn.valid for turn in trajectory.turns)
    assert [turn.reward for turn in trajectory.turns] == [0.0] * (len(script) - 1) + [10.0]


async def test_a_live_actor_reads_the_same_prompts_as_the_expert_of_the_warm_start():
    take_turn, asked, script = expert_turns(LEASE)
    await player(take_turn).play(LEASE)
    assert [prompt in text for (prompt, _), text in zip(script, asked, strict=True)] == [
        True
    ] * len(script)


async def test_an_invalid_action_is_executed_and_marked():
    async def take_turn(request):
        return result_of(
            request, "<action>look</action>" if request.turn_index else "no tags at all"
        )

    trajectory = await player(take_turn).play(LEASE)
    assert not any(turn.valid for turn in trajectory.turns)
    assert trajectory.turns[1].action == "look"


async def test_an_engine_error_drops_the_episode():
    async def take_turn(request):
        return TurnFailed(
            key=request.key,
            lease_attempt=0,
            turn_index=request.turn_index,
            reason=DropReason.ENGINE_ERROR,
            detail="down",
        )

    trajectory = await player(take_turn).play(LEASE)
    assert (trajectory.drop_reason, trajectory.detail) == (DropReason.ENGINE_ERROR, "down")


async def test_a_canceled_episode_leaves_nothing():
    async def take_turn(request):
        return TurnFailed(
            key=request.key,
            lease_attempt=0,
            turn_index=request.turn_index,
            reason=DropReason.CANCELED,
            detail="",
        )

    assert await player(take_turn).play(LEASE) is None


async def test_an_anchor_is_a_digest_or_the_text_where_similar_ones_are_compared():
    take_turn, _, _ = expert_turns(LEASE)
    seen = environment().start(LEASE.split, LEASE.task_index).state_key()
    short, whole = [
        (await player(take_turn, anchor_texts=texts).play(LEASE)).turns[0].anchor
        for texts in (False, True)
    ]
    assert whole == seen and short == digest(seen) and len(short) == 16


async def test_a_prompt_that_is_too_long_drops_the_episode_and_names_the_setting():
    take_turn, _, _ = expert_turns(LEASE)
    trajectory = await player(take_turn, max_prompt_tokens=10).play(LEASE)
    assert (
        trajectory.drop_reason is DropReason.ENV_ERROR
        and "engine.max_model_len" in trajectory.detail
    )


class OneStep:
    """An environment whose only step is given: it breaks, never returns, or ends."""

    name = "one step"
    max_turns = 5

    def __init__(self, step) -> None:
        self._step = step

    def start(self, split, index):
        return self

    task = "task"
    task_type = "type"
    observation = Observation("text", ("look",))
    scores: ClassVar = {"price": 0.5}

    def state_key(self):
        return "anchor"

    def view(self, episode):
        return environment().view(environment().start("train", 0))

    def prompt(self, view):
        return "prompt"

    def parse(self, response, admissible):
        return environment().parse(response, admissible)

    def step(self, action) -> StepResult:
        return self._step()


async def answer(request):
    return result_of(request, "<think>a</think><action>look</action>")


NO_NUMBERS = [nan, inf, 10**400, None, "1.0", 1j, np.array([1.0, 2.0])]
NO_FLAGS = [None, "False", 2, nan, np.array([True, False]), []]
NO_TEXTS = [None, b"bytes", 3, "x\ud800"]


async def given(**changed: object) -> Trajectory:
    """An episode of one step, in whose result, or in which, these things are changed."""
    step = {
        name: changed.pop(name)
        for name in ("observation", "reward", "done", "success", "truncated")
        if name in changed
    }
    environment = OneStep(
        lambda: StepResult(
            **{"observation": OneStep.observation, "reward": 1.0, "done": True, "success": True}
            | step
        )
    )
    vars(environment).update(changed)
    trajectory = await player(answer, environment).play(LEASE)
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
    """What is no number no text or no flag where one belongs drops the episode and is named."""
    trajectory = await given(**changed)
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
    trajectory = decode(encode_trajectory(await player(answer, environment).play(LEASE)))
    assert (trajectory.turns[0].reward, trajectory.success, trajectory.scores) == (
        0.5,
        True,
        {"price": 2.0, "7": 1.0},
    )


def ends() -> StepResult:
    return StepResult(OneStep.observation, 1.0, done=True, success=True)


@pytest.mark.parametrize("method", ["view", "prompt", "state_key", "parse"])
async def test_environment_that_fails_in_any_method_costs_the_episode_not_the_actor(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    """An environment that fails in whatever it is asked costs the episode and not the actor."""

    def fails(*_: object):
        raise KeyError("x")

    monkeypatch.setattr(OneStep, method, fails)
    trajectory = await player(answer, OneStep(ends)).play(LEASE)
    place = f"tests/unit/actors/test_actor_episode.py:{fails.__code__.co_firstlineno + 1} in fails"
    assert (trajectory.drop_reason, trajectory.detail) == (
        DropReason.ENV_ERROR,
        f"KeyError: 'x' ({place})",
    )


@pytest.mark.parametrize("limit", ["MAX_FRAME", "MAX_TURNS"])
async def test_episode_larger_than_any_message_is_dropped_and_says_what_to_lower(
    limit: str, monkeypatch: pytest.MonkeyPatch
):
    """An episode that is larger than any message is sent as dropped and says what to lower."""
    take_turn, _, script = expert_turns(LEASE)
    trajectory = await player(take_turn).play(LEASE)
    size = {"MAX_FRAME": len(encode(trajectory)), "MAX_TURNS": len(script)}[limit]
    monkeypatch.setattr(actors.episode, limit, size)
    assert encode_trajectory(trajectory) == encode(trajectory)
    monkeypatch.setattr(actors.episode, limit, size - 1)
    sent = decode(encode_trajectory(trajectory))
    assert (sent.key, sent.turns, sent.success, sent.drop_reason) == (
        LEASE.key,
        [],
        False,
        DropReason.ENV_ERROR,
    )
    assert "env.max_turns" in sent.detail


async def test_steps_that_never_return_do_not_keep_later_episodes_from_their_own():
    never = threading.Event()
    for _ in range(40):  # more than a pool of threads has
        hung = await player(answer, OneStep(never.wait), step_timeout=0.02).play(LEASE)
        assert hung.drop_reason is DropReason.ENV_ERROR
    played = await player(answer, OneStep(ends)).play(LEASE)
    never.set()
    assert played.drop_reason is None and played.success


async def test_what_the_environment_reports_beside_success_travels_with_the_episode():
    trajectory = await player(
        answer, OneStep(lambda: StepResult(OneStep.observation, 1.0, done=True, success=False))
    ).play(LEASE)
    assert trajectory.scores == {"price": 0.5} and not trajectory.success


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

    environment = OneStep(ends)
    setattr(environment, method, fails)
    async with asyncio.timeout(4):  # less than the step's timeout: it is said at once
        trajectory = await player(answer, environment).play(LEASE)
    sent = decode(encode_trajectory(trajectory))
    assert sent.drop_reason is DropReason.ENV_ERROR and sent.turns == [] and len(sent.detail) < 800
    assert sent.detail.startswith(f"{type(error).__name__}: ")
    assert (
        f"(tests/unit/actors/test_actor_episode.py:{fails.__code__.co_firstlineno + 1} in fails)"
        in sent.detail
    )


async def test_an_error_inside_a_library_is_told_by_the_last_line_of_the_users_own_file():
    def step() -> StepResult:
        return json.loads("{")

    detail = (await player(answer, OneStep(step)).play(LEASE)).detail
    assert detail.startswith("JSONDecodeError: ")
    assert detail.endswith(
        f"(tests/unit/actors/test_actor_episode.py:{step.__code__.co_firstlineno + 1} in step)"
    )


async def test_prompt_that_outgrows_the_context_ends_the_episode_and_keeps_its_turns():
    """A prompt that outgrows the context ends the episode unsolved and keeps its turns."""
    environment = OneStep(lambda: StepResult(OneStep.observation, 0.25, done=False, success=False))
    lengths = iter([10, 20, 10**6])
    environment.prompt = lambda view: "x " * next(lengths)
    trajectory = decode(
        encode_trajectory(await player(answer, environment, max_prompt_tokens=100).play(LEASE))
    )
    assert trajectory.drop_reason is None and trajectory.overflowed and not trajectory.success
    assert [turn.reward for turn in trajectory.turns] == [0.25, 0.25] and trajectory.scores == {
        "price": 0.5
    }
    assert (
        rollout_metrics([trajectory])["overflowed_share"]
        == evaluation_metrics([trajectory])["overflowed_share"]
        == 1
    )
    assert not trajectory.truncated and rollout_metrics([trajectory])["cut_off_share"] == 1


@pytest.mark.parametrize("truncated", [True, False])
async def test_an_episode_that_the_environment_cut_off_says_so(truncated: bool):
    trajectory = decode(encode_trajectory(await given(success=False, truncated=truncated)))
    assert trajectory.truncated is truncated and not trajectory.overflowed
    assert rollout_metrics([trajectory])["cut_off_share"] == truncated


async def test_an_episode_without_end_is_dropped_when_no_message_could_hold_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(actors.episode, "MAX_TURNS", 5)
    environment = OneStep(lambda: StepResult(OneStep.observation, 0.0, done=False, success=False))
    trajectory = await player(answer, environment).play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR and "env.max_turns" in trajectory.detail


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
    environment = Threaded(ends)
    await player(answer, environment).play(LEASE)
    assert len(set(environment.threads)) == 1 and environment.closed in environment.threads
    assert threading.get_ident() not in environment.threads


def fails_to_step() -> StepResult:
    raise KeyError("x")


async def no_engine(request):
    return TurnFailed(
        key=request.key,
        lease_attempt=0,
        turn_index=request.turn_index,
        reason=DropReason.ENGINE_ERROR,
        detail="down",
    )


async def canceled(request):
    return TurnFailed(
        key=request.key,
        lease_attempt=0,
        turn_index=request.turn_index,
        reason=DropReason.CANCELED,
        detail="",
    )


@pytest.mark.parametrize(
    ("policy", "step"),
    [(answer, ends), (answer, fails_to_step), (no_engine, ends), (canceled, ends)],
)
async def test_an_episode_is_closed_once_however_it_ends(policy, step):
    closed = []
    environment = OneStep(step)
    environment.close = lambda: closed.append(1)
    await player(policy, environment).play(LEASE)
    assert closed == [1]


async def test_episode_whose_step_hangs_is_closed_when_the_step_returns():
    """An episode whose step hangs is closed when the step returns; one broken off is, too."""
    for broken_off in (False, True):
        entered = threading.Event()
        release = threading.Event()
        closed = threading.Event()
        environment = OneStep(lambda e=entered, r=release: (e.set(), r.wait())[1])
        environment.close = closed.set
        plays = player(answer, environment, step_timeout=5.0 if broken_off else 0.05)
        playing = asyncio.create_task(plays.play(LEASE))
        await asyncio.to_thread(entered.wait, 5)
        if broken_off:
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
        else:
            assert (
                "actor.step_timeout), at tests/unit/actors/test_actor_episode.py:"
                in (await playing).detail
            )
        assert not closed.is_set()
        release.set()
        await plays.wait_closed(5)
        assert closed.is_set()


@pytest.mark.parametrize(
    "close", [fails_to_step, lambda: sys.exit(1), lambda: threading.Event().wait()]
)
async def test_a_close_that_raises_or_never_returns_changes_nothing(close):
    environment = OneStep(ends)
    environment.close = close
    assert (await player(answer, environment, step_timeout=0.2).play(LEASE)).success


async def test_the_seed_of_the_lease_reaches_a_start_that_takes_one():
    environment = OneStep(ends)
    seeds = []
    environment.start = lambda split, index, seed: (seeds.append(seed), environment)[1]
    await player(answer, environment).play(LEASE)
    assert seeds == [LEASE.seed]


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
                ends(),
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
    """Raises, or gives, in some of what it is asked, what it was made with; in the rest it is as it
    should be.
    """

    def __init__(self, behavior: dict[str, tuple[bool, object]]) -> None:
        super().__init__(ends)
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


@given_values(
    st.dictionaries(
        st.sampled_from(METHODS),
        st.one_of(
            st.tuples(st.just(True), st.sampled_from(RAISED)), st.tuples(st.just(False), ANYTHING)
        ),
    )
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_invariant_10_user_code_that_raises_ends_in_one_episode_the_learner_takes(
    behavior: dict[str, tuple[bool, object]],
):
    """Invariant 10: what user code raises or gives ends in one episode that the learner takes."""

    async def play() -> Trajectory:
        return await player(answer, Arbitrary(behavior)).play(LEASE)

    trajectory = decode(encode_trajectory(asyncio.run(play())))
    assert trajectory.key == LEASE.key
    bounds = Limits(vocabulary=600, context=4000, group_size=2)
    assert (
        validate_trajectory(
            trajectory,
            bounds,
            AdmissionWindow(
                first_group=3, end_group=4, evaluations=0, evaluation_episodes=0, version=0
            ),
        )
        is None
    )


async def test_a_step_that_hangs_is_an_environment_error_that_names_the_timeout():
    release = threading.Event()
    trajectory = await player(answer, OneStep(release.wait), step_timeout=0.05).play(LEASE)
    release.set()
    assert (
        trajectory.drop_reason is DropReason.ENV_ERROR and "actor.step_timeout" in trajectory.detail
    )
