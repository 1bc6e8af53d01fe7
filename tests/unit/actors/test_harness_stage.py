"""The requests of a harness are the turns of an episode, token by token."""

from __future__ import annotations

import asyncio
import json
import math
import time
from contextlib import closing
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.endpoint import Endpoint, Session
from actors.episode import cache_codecs
from actors.harness_stage import HarnessStage
from envs.harness import Outcome
from protocol.arrays import INT32, unpack
from protocol.messages import DropReason, TurnRequest
from protocol.openai_requests import ChatRequest, Wanted
from tests.fixtures.conversations import TOOL, say, texts
from tests.fixtures.episodes import LEASE
from tests.fixtures.harnesses import (
    END,
    PROMPTER,
    QUESTION,
    GivenHarness,
    Script,
    ask,
    ask_once,
    playing,
)
from tests.fixtures.messages import make_turn_failed

CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "2+2"}}</tool_call>' + END


def follow_up(answer: Any, question: str = "Why?") -> list[Any]:
    """The messages of a conversation that goes on, with the client's own object in them."""
    return [answer.choices[0].message, {"role": "user", "content": question}]


async def test_harness_is_played_and_its_reward_is_the_last_turns() -> None:
    async def play(task: str, client: Any) -> float:
        assert task == f"{LEASE.split} {LEASE.task_index}"
        await ask(client)
        await ask(client)
        return 0.5

    async with playing(play, Script([f"4{END}"]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert (trajectory.drop_reason, trajectory.success) == (None, True)
    assert [turn.reward for turn in trajectory.turns] == [0.0, 0.5]
    assert [turn.action for turn in trajectory.turns] == ["4", "4"]
    assert (trajectory.task, trajectory.task_type) == ("held_out 5", "given")


async def test_conversation_that_goes_on_extends_the_tokens_of_the_last() -> None:
    script = Script([f"<think>hm</think>4 <b>{END}", f"5{END}"])

    async def play(task: str, client: Any) -> float:
        first = await ask(client)
        await ask(client, [*QUESTION, *follow_up(first)])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    first, second = script.prompts
    assert second[: len(first) + len(script.responses[0])] == first + script.responses[0]
    assert trajectory.rewrites == 0


@pytest.mark.slow
async def test_branches_of_a_conversation_each_extend_their_own_past() -> None:
    script = Script([f"a{END}", f"b{END}", f"c{END}", f"d{END}"])

    async def play(task: str, client: Any) -> float:
        one, two = [await ask(client) for _ in range(2)]
        await ask(client, [*QUESTION, *follow_up(one)])
        await ask(client, [*QUESTION, *follow_up(two)])
        return 1.0

    async with playing(play, script.take_turn) as player:
        await player.play(LEASE)
    prompts, responses = script.prompts, script.responses
    for branch in (0, 1):
        past = prompts[branch] + responses[branch]
        assert prompts[branch + 2][: len(past)] == past


async def test_past_that_is_said_otherwise_begins_a_new_sequence() -> None:
    script = Script([f"four{END}"])

    async def play(task: str, client: Any) -> float:
        await ask(client)
        told = {"role": "assistant", "content": "five"}
        await ask(client, [*QUESTION, told, {"role": "user", "content": "Why?"}])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    assert "five" in script.read()[1]
    assert trajectory.rewrites == 1


async def test_tool_is_called_and_its_result_is_read() -> None:
    script = Script([CALL, f"4{END}"])

    async def play(task: str, client: Any) -> float:
        first = await ask(client, tools=[TOOL])
        assert first.choices[0].finish_reason == "tool_calls"
        (call,) = first.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"expression": "2+2"}
        result = {"role": "tool", "content": "is 4", "tool_call_id": call.id}
        await ask(client, [*QUESTION, first.choices[0].message, result], tools=[TOOL])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    past = script.prompts[0] + script.responses[0]
    assert script.prompts[1][: len(past)] == past
    assert "<tool_response>\nis 4\n" in script.read()[1]
    assert trajectory.turns[0].action == "calculate(expression='2+2')"


async def test_call_that_cannot_be_read_comes_as_it_was_written() -> None:
    script = Script([f"<tool_call>{{bad</tool_call>{END}"])

    async def play(task: str, client: Any) -> float:
        first = await ask(client, tools=[TOOL])
        (call,) = first.choices[0].message.tool_calls
        assert call.function.arguments == "{bad"
        result = {"role": "tool", "content": "no JSON", "tool_call_id": call.id}
        await ask(client, [*QUESTION, first.choices[0].message, result], tools=[TOOL])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    assert not trajectory.turns[0].valid
    assert script.prompts[1][: len(script.prompts[0])] == script.prompts[0]


async def test_choices_of_a_request_are_turns_with_one_prompt() -> None:
    script = Script([f"a{END}", f"b{END}", f"c{END}"])

    async def play(task: str, client: Any) -> float:
        answer = await ask(client, n=3)
        assert [choice.message.content for choice in answer.choices] == ["a", "b", "c"]
        assert answer.usage.completion_tokens == 6
        chosen = {"role": "assistant", "content": "b"}
        await ask(client, [*QUESTION, chosen, {"role": "user", "content": "Why?"}])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    assert script.prompts[0] == script.prompts[1] == script.prompts[2]
    past = script.prompts[1] + script.responses[1]
    assert script.prompts[3][: len(past)] == past
    assert trajectory.rewrites == 0


@pytest.mark.parametrize(
    ("settings", "content", "reason"),
    [({"stop": ["wor", "."]}, "Hello ", "stop"), ({"max_tokens": 3}, "Hel", "length")],
    ids=["stop", "max_tokens"],
)
async def test_answer_is_cut_and_trained_on_up_to_there(
    settings: dict[str, Any], content: str, reason: str
) -> None:
    script = Script([f"Hello world.{END}"])

    async def play(task: str, client: Any) -> float:
        answer = await ask(client, **settings)
        assert answer.choices[0].message.content == content
        assert answer.choices[0].finish_reason == reason
        await ask(client, [*QUESTION, *follow_up(answer)])
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    kept = unpack(trajectory.turns[0].kept.tokens, INT32).tolist()
    assert PROMPTER.decode_exactly(kept).startswith(content)
    assert len(kept) < len(script.responses[0])
    past = script.prompts[0] + kept
    assert script.prompts[1][: len(past)] == past
    assert trajectory.turns[0].valid == (reason == "stop")


async def test_log_probs_are_those_of_the_sampled_tokens() -> None:
    async def play(task: str, client: Any) -> float:
        (choice,) = (await ask(client, logprobs=True)).choices
        assert [(each.token, each.logprob) for each in choice.logprobs.content] == [
            ("4", -0.5),
            (END, -0.5),
        ]
        return 1.0

    async with playing(play, Script([f"4{END}"]).take_turn) as player:
        assert (await player.play(LEASE)).success


async def test_text_goes_on_from_the_tokens_that_were_written() -> None:
    script = Script([f" 4, so{END}", f" 8.{END}"])

    async def play(task: str, client: Any) -> float:
        prompt = "2 + 2 is"
        for _ in range(2):
            answer = await client.completions.create(model="policy", prompt=prompt, logprobs=1)
            prompt += answer.choices[0].text + " twice that is"
        assert prompt == "2 + 2 is 4, so twice that is 8. twice that is"
        return 1.0

    async with playing(play, script.take_turn) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is None, trajectory.detail
    past = script.prompts[0] + script.responses[0][:-1]
    assert script.prompts[1][: len(past)] == past
    assert script.read()[1] == "2 + 2 is 4, so twice that is"


async def test_requests_at_once_are_turns_one_after_another() -> None:
    script = Script([f"{number}{END}" for number in range(8)])

    async def play(task: str, client: Any) -> float:
        answers = await asyncio.gather(*(ask(client) for _ in range(8)))
        assert {answer.choices[0].message.content for answer in answers} == set("01234567")
        return 1.0

    async with playing(play, script.take_turn) as player:
        assert len((await player.play(LEASE)).turns) == 8


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (None, "gave no reward"),
        (math.nan, "nan as reward"),
        ("1.0", "'1.0' as reward"),
        (1e30, "a reward of 1e+30"),
        (Outcome(1.0, success="yes"), "'yes' as success"),  # type: ignore[arg-type]
        (Outcome(1.0, scores={"price": "low"}), "'low' as score price"),  # type: ignore[dict-item]
    ],
)
async def test_reward_that_is_none_drops_the_episode(reward: Any, words: str) -> None:
    async def play(task: str, client: Any) -> Any:
        await ask(client)
        return reward

    async with playing(play, Script([f"4{END}"]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert words in trajectory.detail


async def test_outcome_says_more_than_a_reward() -> None:
    async def play(task: str, client: Any) -> Outcome:
        await ask(client)
        return Outcome(0.3, success=False, truncated=True, scores={"words": 3})

    async with playing(play, Script([f"4{END}"]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert (trajectory.success, trajectory.truncated) == (False, True)
    assert trajectory.scores == {"words": 3.0}


async def test_harness_without_a_request_drops_the_episode() -> None:
    async def play(task: str, client: Any) -> float:
        return 1.0

    async with playing(play, Script([END]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert "ended without a request" in trajectory.detail


async def test_harness_that_raises_drops_the_episode_with_its_line() -> None:
    async def play(task: str, client: Any) -> float:
        await ask(client)
        raise KeyError("lost")

    async with playing(play, Script([END]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert trajectory.detail.startswith("KeyError: 'lost'")
    assert "harnesses.py" in trajectory.detail  # where its class is


@pytest.mark.slow
@pytest.mark.parametrize("hang", ["await", "block"])
async def test_harness_that_hangs_drops_the_episode_and_says_where(hang: str) -> None:
    async def play(task: str, client: Any) -> float:
        await ask(client)
        if hang == "await":
            await asyncio.Event().wait()
        time.sleep(0.6)
        return 1.0

    async with playing(play, Script([END]).take_turn, step_timeout=0.3) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert "within 0.3 s (actor.step_timeout), at " in trajectory.detail
    assert "harnesses.py" in trajectory.detail


async def test_canceled_episode_cancels_the_harness() -> None:
    ended = asyncio.Event()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def play(task: str, client: Any) -> float:
        try:
            await ask(client)
        finally:
            loop.call_soon_threadsafe(ended.set)
        return 1.0

    async def take_turn(request: TurnRequest) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with playing(play, take_turn) as player:
        playing_task = asyncio.create_task(player.play(LEASE))
        await asked.wait()
        playing_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing_task
        await asyncio.wait_for(ended.wait(), 5.0)


async def test_episode_that_the_controller_ends_ends_its_requests() -> None:
    refused: list[Exception] = []

    async def play(task: str, client: Any) -> float:
        try:
            await ask(client)
        except openai.APIStatusError as error:
            refused.append(error)
            raise
        return 1.0

    async def take_turn(request: TurnRequest) -> Any:
        return make_turn_failed(request, detail="down")

    async with playing(play, take_turn) as player:
        trajectory = await player.play(LEASE)
    assert (trajectory.drop_reason, trajectory.detail) == (DropReason.ENGINE_ERROR, "down")
    assert len(refused) <= 1  # it may have been canceled before


async def test_harness_that_goes_on_after_its_last_turn_is_truncated() -> None:
    async def play(task: str, client: Any) -> float:
        while True:
            await ask(client)

    async with playing(play, Script([END]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert (len(trajectory.turns), trajectory.truncated) == (20, True)
    assert (trajectory.drop_reason, trajectory.success) == (None, False)


async def test_conversation_that_outgrows_the_context_is_overflowed() -> None:
    async def play(task: str, client: Any) -> float:
        messages = list(QUESTION)
        while True:
            answer = await ask(client, messages)
            messages += follow_up(answer, "x" * 100)

    script = Script([END])
    async with playing(play, script.take_turn, max_prompt_tokens=400) as player:
        trajectory = await player.play(LEASE)
    assert (trajectory.drop_reason, trajectory.overflowed) == (None, True)
    assert max(map(len, script.prompts)) <= 400


async def test_harness_that_shortens_its_messages_goes_on() -> None:
    async def play(task: str, client: Any) -> float:
        await ask(client)
        with pytest.raises(openai.BadRequestError, match=r"engine\.max_model_len") as raised:
            await ask(client, [{"role": "user", "content": "x" * 2_000_000}])
        assert raised.value.code == "context_length_exceeded"
        await ask(client)
        return 1.0

    async with playing(play, Script([END]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert (trajectory.success, trajectory.overflowed) == (True, False)


async def test_first_prompt_that_does_not_fit_drops_the_episode() -> None:
    async with playing(ask_once, Script([END]).take_turn, max_prompt_tokens=10) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.drop_reason is DropReason.ENV_ERROR
    assert "engine.max_model_len" in trajectory.detail


async def test_client_that_vanishes_costs_its_own_turn_at_most() -> None:
    async def play(task: str, client: Any) -> float:
        first, gone = [asyncio.create_task(ask(client)) for _ in range(2)]
        await first
        gone.cancel()
        await asyncio.wait({gone})
        await ask(client)
        return 1.0

    async with playing(play, Script([END]).take_turn) as player:
        trajectory = await player.play(LEASE)
    assert trajectory.success, trajectory.detail
    assert len(trajectory.turns) in (2, 3)


class NotingEndpoint(Endpoint):
    """An endpoint whose last session can be asked without a client."""

    session: Session

    def open_session(self) -> Session:
        self.session = super().open_session()
        return self.session


async def wait_for_ever(task: str, client: Any) -> float:
    await asyncio.Event().wait()
    return 1.0


def test_request_that_nobody_waits_for_is_no_turn() -> None:
    with closing(NotingEndpoint()) as endpoint:
        endpoint.start()
        stage = HarnessStage(
            GivenHarness(wait_for_ever),
            PROMPTER,
            cache_codecs(PROMPTER),
            endpoint,
            max_prompt_tokens=4000,
            timeout_seconds=30.0,
            home="",
        )
        with closing(stage):
            gone = endpoint.session.ask(ChatRequest([say("user", "gone")], [], Wanted()))
            gone.answer.cancel()
            endpoint.session.ask(ChatRequest([say("user", "there")], [], Wanted()))
            prompt = stage.start("train", 0, 0).prompt
    assert prompt is not None
    assert "there" in PROMPTER.decode_exactly(prompt)


async def test_harnesses_of_one_actor_do_not_meet() -> None:
    async def play(task: str, client: Any) -> float:
        question = [{"role": "user", "content": client.api_key}]
        for _ in range(3):
            answer = await ask(client, question)
            assert answer.choices[0].message.content == "4"
        return 1.0

    script = Script([f"4{END}"])
    async with playing(play, script.take_turn) as player:
        trajectories = await asyncio.gather(*(player.play(LEASE) for _ in range(16)))
    assert [len(each.turns) for each in trajectories] == [3] * 16
    keys = [set(prompts_of(each)) for each in trajectories]
    assert all(len(prompts) == 1 for prompts in keys)
    assert len(set.union(*keys)) == 16


def prompts_of(trajectory: Any) -> list[tuple[int, ...]]:
    return [tuple(unpack(turn.prompt, INT32).tolist()) for turn in trajectory.turns]


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    st.lists(texts, min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_any_tree_of_conversations_is_token_exact(responses: list[str], parents: list[int]) -> None:
    """Each prompt begins with the tokens of the answer that its messages extend."""
    script = Script([text + END for text in responses])

    async def play(task: str, client: Any) -> float:
        known = [list(QUESTION)]
        for number, parent in enumerate(parents):
            messages = known[parent % len(known)]
            answer = await ask(client, messages)
            known.append([*messages, *follow_up(answer, f"{number}?")])
        return 1.0

    async def run() -> Any:
        async with playing(play, script.take_turn) as player:
            return await player.play(LEASE)

    trajectory = asyncio.run(run())
    assert trajectory.drop_reason is None, trajectory.detail
    assert trajectory.rewrites == 0
    pasts = [p + r for p, r in zip(script.prompts, script.responses, strict=True)]
    origins: list[int | None] = [None]
    for number, parent in enumerate(parents):
        origin = origins[parent % len(origins)]
        prompt = script.prompts[number]
        if origin is None:
            assert prompt == script.prompts[0]
        else:
            assert any(prompt[: len(past)] == past for past in pasts[:number])
        origins.append(number)
