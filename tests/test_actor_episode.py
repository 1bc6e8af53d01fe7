"""One episode in an actor, with the environment's own expert in the place of the policy."""

from __future__ import annotations

import random
import threading
from functools import cache
from math import inf, nan

import numpy as np
import pytest

import actors.episode
from actors.episode import EpisodePlayer, digest, frame_of
from config import ModelSection
from envs.base import EnvironmentFailure, Observation, ParsedAction, StepResult
from envs.play import expert_episode
from envs.registry import make_environment
from learner.tiny import CHAT_TEMPLATE, train_tokenizer
from protocol.arrays import FLOAT32, INT32, UINT8, pack, unpack
from protocol.codec import decode, encode
from protocol.messages import Attempt, DropReason, EpisodeKey, Lease, Span, StopReason, TurnFailed, TurnResult
from protocol.prompting import Prompter

LEASE = Lease(key=EpisodeKey(3, 1), attempt=0, split="held_out", task_index=5, seed=7)


@cache
def environment():
    return make_environment("alfworld")


@cache
def tokenizer():
    turns = [turn for i in range(20) for turn in expert_episode(environment(), "train", i, random.Random(i)).turns]
    return train_tokenizer(ModelSection(vocabulary=600), turns)


def prompter() -> Prompter:
    return Prompter(tokenizer().to_str().encode(), CHAT_TEMPLATE)


def result_of(request, text: str) -> TurnResult:
    tokens = tokenizer().encode(text + "<|im_end|>", add_special_tokens=False).ids
    kept = Attempt(
        tokens=pack(tokens, INT32), log_probs=pack([-0.1] * len(tokens), FLOAT32), mask=pack([1] * len(tokens), UINT8),
        spans=[Span(0, len(tokens), 0)], uncertainty=b"", signals=b"", events=[], stop=StopReason.END, score=0.5, thinking=0,
    )  # fmt: skip
    return TurnResult(key=request.key, attempt=request.attempt, turn=request.turn, kept=kept, rejected=[])


def player(take_turn, env=None, **settings) -> EpisodePlayer:
    settings = {"step_timeout": 5.0, "max_prompt_tokens": 4000, "anchor_texts": False} | settings
    return EpisodePlayer(env or environment(), prompter(), take_turn, **settings)


def expert_turns(lease: Lease):
    """A policy that answers as the expert does, and what it was asked."""
    script = expert_episode(environment(), lease.split, lease.task_index, random.Random(0)).turns
    asked = []

    async def take_turn(request):
        asked.append(prompter().text(unpack(request.prompt, INT32).tolist()))
        return result_of(request, script[request.turn][1])

    return take_turn, asked, script


async def test_the_expert_wins_and_every_turn_is_recorded():
    take_turn, _asked, script = expert_turns(LEASE)
    trajectory = await player(take_turn).play(LEASE)
    assert trajectory.success and trajectory.dropped is None
    assert len(trajectory.turns) == len(script) and all(turn.valid for turn in trajectory.turns)
    assert [turn.reward for turn in trajectory.turns] == [0.0] * (len(script) - 1) + [10.0]


async def test_a_live_actor_reads_the_same_prompts_as_the_expert_of_the_warm_start():
    take_turn, asked, script = expert_turns(LEASE)
    await player(take_turn).play(LEASE)
    assert [prompt in text for (prompt, _), text in zip(script, asked, strict=True)] == [True] * len(script)


async def test_an_invalid_action_is_executed_and_marked():
    async def take_turn(request):
        return result_of(request, "<action>look</action>" if request.turn else "no tags at all")

    trajectory = await player(take_turn).play(LEASE)
    assert not any(turn.valid for turn in trajectory.turns)
    assert trajectory.turns[1].action == "look"


async def test_an_engine_error_drops_the_episode():
    async def take_turn(request):
        return TurnFailed(key=request.key, attempt=0, turn=request.turn, reason=DropReason.ENGINE_ERROR, detail="down")

    trajectory = await player(take_turn).play(LEASE)
    assert (trajectory.dropped, trajectory.detail) == (DropReason.ENGINE_ERROR, "down")


async def test_a_cancelled_episode_leaves_nothing():
    async def take_turn(request):
        return TurnFailed(key=request.key, attempt=0, turn=request.turn, reason=DropReason.CANCELLED, detail="")

    assert await player(take_turn).play(LEASE) is None


async def test_an_anchor_is_a_digest_or_the_text_where_similar_ones_are_compared():
    take_turn, _, _ = expert_turns(LEASE)
    seen = environment().start(LEASE.split, LEASE.task_index).anchor()
    short, whole = [(await player(take_turn, anchor_texts=texts).play(LEASE)).turns[0].anchor for texts in (False, True)]
    assert whole == seen and short == digest(seen) and len(short) == 16


async def test_a_prompt_that_is_too_long_drops_the_episode_and_names_the_setting():
    take_turn, _, _ = expert_turns(LEASE)
    trajectory = await player(take_turn, max_prompt_tokens=10).play(LEASE)
    assert trajectory.dropped is DropReason.ENV_ERROR and "engine.max_model_len" in trajectory.detail


class OneStep:
    """An environment whose only step is given: it breaks, never returns, or ends."""

    name, max_turns = "one step", 5

    def __init__(self, step) -> None:
        self._step = step

    def start(self, split, index):
        return self

    task, task_type, observation, scores = "task", "type", Observation("text", ("look",)), {"price": 0.5}

    def anchor(self):
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


@pytest.mark.parametrize(("reward", "price"), [(nan, 0.5), (inf, 0.5), (-1e300, 0.5), (None, 0.5), (1.0, nan), (1.0, None)])
async def test_a_reward_or_score_that_cannot_be_computed_with_drops_the_episode_and_says_so(reward: float | None, price: float | None):
    environment = OneStep(lambda: StepResult(OneStep.observation, reward, done=True, success=True))
    environment.scores = {"price": price}
    trajectory = await player(answer, environment).play(LEASE)
    assert trajectory.dropped is DropReason.ENV_ERROR and f"a reward of {reward}, and scores {{'price': {price}}}" in trajectory.detail


async def test_numbers_of_numpy_are_numbers():
    environment = OneStep(lambda: StepResult(OneStep.observation, np.float32(0.5), done=np.True_, success=np.True_))
    environment.scores = {"price": np.int64(2), 7: 1}
    trajectory = decode(frame_of(await player(answer, environment).play(LEASE)))
    assert (trajectory.turns[0].reward, trajectory.success, trajectory.scores) == (0.5, True, {"price": 2.0, "7": 1.0})


def ends() -> StepResult:
    return StepResult(OneStep.observation, 1.0, done=True, success=True)


@pytest.mark.parametrize("method", ["view", "prompt", "anchor", "parse"])
async def test_an_environment_that_fails_in_whatever_it_is_asked_costs_the_episode_and_not_the_actor(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object):
        raise KeyError("x")

    monkeypatch.setattr(OneStep, method, fails)
    trajectory = await player(answer, OneStep(ends)).play(LEASE)
    assert (trajectory.dropped, trajectory.detail) == (DropReason.ENV_ERROR, "KeyError: 'x'")


@pytest.mark.parametrize(
    ("method", "value", "name"),
    [
        ("task", None, "task"),
        ("task_type", 3, "task_type"),
        ("anchor", lambda self: b"bytes", "anchor()"),
        ("parse", lambda *_: ParsedAction(None, valid=False), "action"),
    ],
)
async def test_what_is_no_text_where_a_text_belongs_drops_the_episode_and_is_named(
    method: str, value: object, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(OneStep, method, value)
    trajectory = await player(answer, OneStep(ends)).play(LEASE)
    assert trajectory.dropped is DropReason.ENV_ERROR and f" as {name}, which is a text" in trajectory.detail


@pytest.mark.parametrize("limit", ["MAX_FRAME", "MAX_TURNS"])
async def test_an_episode_that_is_larger_than_any_message_is_sent_as_dropped_and_says_what_to_lower(
    limit: str, monkeypatch: pytest.MonkeyPatch
):
    take_turn, _, script = expert_turns(LEASE)
    trajectory = await player(take_turn).play(LEASE)
    size = {"MAX_FRAME": len(encode(trajectory)), "MAX_TURNS": len(script)}[limit]
    monkeypatch.setattr(actors.episode, limit, size)
    assert frame_of(trajectory) == encode(trajectory)
    monkeypatch.setattr(actors.episode, limit, size - 1)
    sent = decode(frame_of(trajectory))
    assert (sent.key, sent.turns, sent.success, sent.dropped) == (LEASE.key, [], False, DropReason.ENV_ERROR)
    assert "env.max_turns" in sent.detail


async def test_steps_that_never_return_do_not_keep_later_episodes_from_their_own():
    never = threading.Event()
    for _ in range(40):  # more than a pool of threads has
        hung = await player(answer, OneStep(never.wait), step_timeout=0.02).play(LEASE)
        assert hung.dropped is DropReason.ENV_ERROR
    played = await player(answer, OneStep(ends)).play(LEASE)
    never.set()
    assert played.dropped is None and played.success


async def test_what_the_environment_reports_beside_success_travels_with_the_episode():
    trajectory = await player(answer, OneStep(lambda: StepResult(OneStep.observation, 1.0, done=True, success=False))).play(LEASE)
    assert trajectory.scores == {"price": 0.5} and not trajectory.success


@pytest.mark.parametrize("error", [EnvironmentFailure("server down"), KeyError("x"), TimeoutError("of its own")])
async def test_invariant_3_an_environment_error_is_a_dropped_episode_never_a_reward(error):
    def step():
        raise error

    trajectory = await player(answer, OneStep(step)).play(LEASE)
    assert trajectory.dropped is DropReason.ENV_ERROR and trajectory.turns == []
    assert trajectory.detail == f"{type(error).__name__}: {error}"


async def test_a_step_that_hangs_is_an_environment_error_that_names_the_timeout():
    release = threading.Event()
    trajectory = await player(answer, OneStep(release.wait), step_timeout=0.05).play(LEASE)
    release.set()
    assert trajectory.dropped is DropReason.ENV_ERROR and "actor.step_timeout" in trajectory.detail
