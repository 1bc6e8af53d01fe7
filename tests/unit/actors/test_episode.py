"""One episode in an actor: what is recorded of it, and when it is dropped."""

from __future__ import annotations

import pytest

import actors.episode
from actors.episode import digest, encode_trajectory
from envs.base import StepResult
from learner.data.evaluation_metrics import evaluation_metrics
from learner.data.rollout_metrics import rollout_metrics
from protocol.codec import decode, encode
from protocol.messages import DropReason
from tests.fixtures.controller import PLAN
from tests.fixtures.episodes import (
    LEASE,
    ExpertPolicy,
    OneStep,
    alfworld,
    end_step,
    make_player,
    respond,
    take_look_turn,
)
from tests.fixtures.messages import make_turn_failed


async def test_the_expert_wins_and_every_turn_is_recorded():
    policy = ExpertPolicy(LEASE)
    trajectory = await make_player(policy.take_turn).play(LEASE)
    count = len(policy.script)
    assert trajectory.success and trajectory.drop_reason is None
    assert len(trajectory.turns) == count and all(turn.valid for turn in trajectory.turns)
    assert [turn.reward for turn in trajectory.turns] == [0.0] * (count - 1) + [10.0]


async def test_a_live_actor_reads_the_same_prompts_as_the_expert_of_the_warm_start():
    policy = ExpertPolicy(LEASE)
    await make_player(policy.take_turn).play(LEASE)
    assert [
        prompt in text for (prompt, _), text in zip(policy.script, policy.asked, strict=True)
    ] == [True] * len(policy.script)


async def test_an_invalid_action_is_executed_and_marked():
    async def take_turn(request):
        return respond(request, "<action>look</action>" if request.turn_index else "no tags at all")

    trajectory = await make_player(take_turn).play(LEASE)
    assert not any(turn.valid for turn in trajectory.turns)
    assert trajectory.turns[1].action == "look"


async def test_an_engine_error_drops_the_episode():
    async def take_turn(request):
        return make_turn_failed(request, detail="down")

    trajectory = await make_player(take_turn).play(LEASE)
    assert (trajectory.drop_reason, trajectory.detail) == (DropReason.ENGINE_ERROR, "down")


async def test_a_canceled_episode_leaves_nothing():
    async def take_turn(request):
        return make_turn_failed(request, DropReason.CANCELED)

    assert await make_player(take_turn).play(LEASE) is None


async def test_an_anchor_is_a_digest_or_the_text_where_similar_ones_are_compared():
    policy = ExpertPolicy(LEASE)
    seen = alfworld().start(LEASE.split, LEASE.task_index).state_key()
    short, whole = [
        (await make_player(policy.take_turn, anchor_texts=texts).play(LEASE)).turns[0].anchor
        for texts in (False, True)
    ]
    assert whole == seen and short == digest(seen) and len(short) == 16


async def test_a_prompt_that_is_too_long_drops_the_episode_and_names_the_setting():
    player = make_player(ExpertPolicy(LEASE).take_turn, max_prompt_tokens=10)
    trajectory = await player.play(LEASE)
    assert (
        trajectory.drop_reason is DropReason.ENV_ERROR
        and "engine.max_model_len" in trajectory.detail
    )


@pytest.mark.parametrize("limit", ["MAX_FRAME", "MAX_TURNS"])
async def test_episode_larger_than_any_message_is_dropped_and_says_what_to_lower(
    limit: str, monkeypatch: pytest.MonkeyPatch
):
    """An episode that is larger than any message is sent as dropped and says what to lower."""
    policy = ExpertPolicy(LEASE)
    trajectory = await make_player(policy.take_turn).play(LEASE)
    size = {"MAX_FRAME": len(encode(trajectory)), "MAX_TURNS": len(policy.script)}[limit]
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


async def test_prompt_that_outgrows_the_context_ends_the_episode_and_keeps_its_turns():
    """A prompt that outgrows the context ends the episode unsolved and keeps its turns."""
    environment = OneStep(lambda: StepResult(OneStep.observation, 0.25, done=False, success=False))
    lengths = iter([10, 20, 10**6])
    environment.prompt = lambda view: "x " * next(lengths)
    player = make_player(take_look_turn, environment, max_prompt_tokens=100)
    trajectory = decode(encode_trajectory(await player.play(LEASE)))
    assert trajectory.drop_reason is None and trajectory.overflowed and not trajectory.success
    assert [turn.reward for turn in trajectory.turns] == [0.25, 0.25] and trajectory.scores == {
        "price": 0.5
    }
    assert (
        rollout_metrics([trajectory])["overflowed_share"]
        == evaluation_metrics([trajectory], PLAN, 0)["overflowed_share"]
        == 1
    )
    assert not trajectory.truncated and rollout_metrics([trajectory])["cut_off_share"] == 1


@pytest.mark.parametrize(
    ("truncated", "success", "is_cut_off"),
    [(True, False, True), (False, False, False), (True, True, False), (False, True, False)],
)
async def test_an_episode_that_the_environment_cut_off_says_so(
    truncated: bool, success: bool, is_cut_off: bool
):
    """One that is solved in its last turn was not cut off."""
    result = StepResult(OneStep.observation, 1.0, done=True, success=success, truncated=truncated)
    player = make_player(take_look_turn, OneStep(lambda: result))
    trajectory = decode(encode_trajectory(await player.play(LEASE)))
    assert trajectory.truncated is is_cut_off and not trajectory.overflowed
    assert trajectory.success is success and trajectory.drop_reason is None
    assert rollout_metrics([trajectory])["cut_off_share"] == is_cut_off


async def test_an_episode_without_end_is_dropped_when_no_message_could_hold_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(actors.episode, "MAX_TURNS", 5)
    environment = OneStep(lambda: StepResult(OneStep.observation, 0.0, done=False, success=False))
    trajectory = await make_player(take_look_turn, environment).play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR and "env.max_turns" in trajectory.detail


async def test_what_the_environment_reports_beside_success_travels_with_the_episode():
    result = StepResult(OneStep.observation, 1.0, done=True, success=False)
    trajectory = await make_player(take_look_turn, OneStep(lambda: result)).play(LEASE)
    assert trajectory.scores == {"price": 0.5} and not trajectory.success


async def test_the_seed_of_the_lease_reaches_a_start_that_takes_one():
    environment = OneStep(end_step)
    seeds = []

    def start(split, index, seed):
        seeds.append(seed)
        return environment

    environment.start = start
    await make_player(take_look_turn, environment).play(LEASE)
    assert seeds == [LEASE.seed]
