"""A conversation is played as its environment says, and refused where it says nonsense."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.conversation_stage import ConversationStage
from actors.episode import EpisodePlayer
from envs.conversation import Message, Reply, ToolCall
from envs.play import play_expert_episode
from envs.registry import Environments
from envs.user_errors import UserCodeError
from learner.data.rollout_metrics import rollout_metrics
from protocol.arrays import INT32, pack
from protocol.chat_codec import ChatCodec
from protocol.messages import TurnRequest, TurnResult
from tests.fixtures.conversations import texts
from tests.fixtures.episodes import LEASE
from tests.fixtures.messages import make_response, make_turn_result
from tests.fixtures.templates import MISTRAL, PLAIN, make_chat_prompter
from tests.fixtures.tool_environment import load_prices, prices_with_expert

PROMPTER = make_chat_prompter(PLAIN)
PRICES = load_prices()()


class OneReply:
    """An environment, and its only episode, with one tool, whose reply is given."""

    name = "one reply"
    max_turns = 3
    tools = PRICES.tools
    task = task_type = "task"
    scores: dict[str, float] = {}  # noqa: RUF012
    messages: Any = (Message("user", "?"),)

    def __init__(self, reply: Any = None) -> None:
        self._reply = reply

    def start(self, split: str, index: int, seed: int) -> OneReply:
        return self

    def reply(self, message: Message) -> Any:
        return self._reply


def make_stage(environment: Any, max_prompt_tokens: int = 4000) -> ConversationStage:
    codec = ChatCodec(PROMPTER, environment.tools)
    return ConversationStage(environment, codec, max_prompt_tokens)


def say(stage: ConversationStage, response: str) -> Any:
    return stage.step(pack(PROMPTER.encode([response])[0], INT32))


CALL = '<tool_call>{"name": "price", "arguments": {"fruit": "fig"}}</tool_call><|im_end|>'


def test_expert_solves_the_tasks_of_the_guide() -> None:
    environment = prices_with_expert()
    for index in range(20):
        episode = play_expert_episode(environment, "train", index, random.Random(0))
        assert (episode.success, len(episode.conversation), episode.reward) == (True, 3, 1.0)


def test_tool_is_called_and_its_result_is_in_the_next_prompt() -> None:
    stage = make_stage(PRICES)
    prompt = stage.start("train", 0, 0).prompt
    outcome = say(stage, CALL)
    price = stage.episode.prices["fig"]
    assert outcome.valid
    assert outcome.action == "price(fruit='fig')"
    assert outcome.prompt[: len(prompt)] == prompt
    assert f"<tool_response>\n{price}\n" in PROMPTER.decode_exactly(outcome.prompt)


@given(st.lists(texts, min_size=1, max_size=6))
def test_any_responses_end_the_episode_in_time(responses: list[str]) -> None:
    stage = make_stage(PRICES)
    stage.start("train", 0, 0)
    outcomes = []
    for response in responses * PRICES.max_turns:
        outcomes.append(say(stage, response))
        if outcomes[-1].done:
            break
    assert outcomes[-1].done
    assert outcomes[-1].truncated == bool(stage.messages[-1].tool_calls)
    assert len(outcomes) <= PRICES.max_turns


@pytest.mark.parametrize(
    ("past_thoughts", "rewrites"), [("template", 2), ("keep", 0)], ids=["template", "keep"]
)
async def test_episode_counts_prompts_that_the_template_rewrote(
    past_thoughts: str, rewrites: int
) -> None:
    """A template that shows no thoughts begins a prompt anew after each of them."""
    prompter = make_chat_prompter(PLAIN, past_thoughts=past_thoughts)
    answers = itertools.chain([f"<think>I ask.</think>{CALL}"] * 2, ["1<|im_end|>"])

    async def take_turn(request: TurnRequest) -> TurnResult:
        tokens = prompter.encode([next(answers)])[0]
        return make_turn_result(request, make_response(len(tokens), tokens=pack(tokens, INT32)))

    player = EpisodePlayer(
        Environments(PRICES),
        prompter,
        take_turn,
        step_timeout=60.0,
        max_prompt_tokens=4000,
        anchor_texts=False,
    )
    trajectory = await player.play(LEASE)
    assert (len(trajectory.turns), trajectory.rewrites) == (3, rewrites)
    assert rollout_metrics([trajectory])["rewritten_share"] == (rewrites > 0)


def test_reply_can_call_a_readable_answer_invalid() -> None:
    stage = make_stage(OneReply(Reply(done=True, valid=False)))
    stage.start("train", 0, 0)
    assert not say(stage, "2<|im_end|>").valid


def test_prompt_that_does_not_fit_is_none() -> None:
    stage = make_stage(OneReply(Reply([Message("user", "x" * 10**7)])), 400)
    assert stage.start("train", 0, 0).prompt is not None
    outcome = say(stage, "2<|im_end|>")
    assert not outcome.done
    assert outcome.prompt is None


@pytest.mark.parametrize("said", ["reasoning", "arguments"])
def test_opening_that_is_far_too_long_is_not_made_into_tokens(said: str) -> None:
    long = "x" * 10**7
    answer = Message("assistant", reasoning=long)
    if said == "arguments":
        answer = Message("assistant", tool_calls=(ToolCall("price", {"fruit": long}),))
    environment = OneReply()
    environment.messages = [answer, Message("user", "?")]
    assert make_stage(environment).start("train", 0, 0).prompt is None


def test_state_key_is_what_was_said_to_the_policy() -> None:
    stage = make_stage(PRICES)
    stage.start("train", 0, 0)
    price = str(stage.episode.prices["fig"])
    first = say(stage, CALL).anchor
    second = say(stage, CALL).anchor
    assert second == f"{first}\ntool: {price}"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "gave no messages as reply"),
        (None, "where a list of messages belongs"),
        ([{"role": "user", "content": "x"}], r"where a Message belongs"),
        ([Message("user", "x", tool_calls=(ToolCall("price"),))], "only the assistant calls"),
        ([Message("tool", "x", tool_call_id=3)], r"gave 3 as .*tool_call_id, where a text"),
        ([Message("robot", "x")], r"'robot' as reply\(\)\.messages\[0\]\.role, which is one of"),
        ([Message("assistant", "x")], "is the assistant's"),
        ([Message("tool", "x")], "called no tool"),
        ([Message("user", None)], "where a text belongs"),
        ([Message("user", "\ud800")], "UTF-8"),
    ],
)
def test_messages_that_cannot_be_said_are_refused(messages: Any, reason: str) -> None:
    stage = make_stage(OneReply(Reply(messages)))
    stage.start("train", 0, 0)
    with pytest.raises(UserCodeError, match=reason):
        say(stage, "2<|im_end|>")


def test_opening_with_calls_is_numbered_before_those_of_the_policy() -> None:
    """Some templates take ids of nine letters alone."""
    environment = OneReply(Reply([Message("tool", "3")]))
    call = Message("assistant", tool_calls=(ToolCall("price", {"fruit": "fig"}, id="a"),))
    environment.messages = [Message("user", "?"), call, Message("tool", "2"), Message("user", "!")]
    prompter = make_chat_prompter(MISTRAL)
    stage = ConversationStage(environment, ChatCodec(prompter, environment.tools), 4000)
    stage.start("train", 0, 0)
    response = '[TOOL_CALLS] [{"name": "price", "arguments": {"fruit": "fig"}}]</s>'
    stage.step(pack(prompter.encode([response])[0], INT32))
    ids = [call.id for said in stage.messages for call in said.tool_calls]
    assert ids == ["call00000", "call00001"]
    assert [said.tool_call_id for said in stage.messages if said.role == "tool"] == ids


def test_environment_that_changes_arguments_changes_no_record() -> None:
    class Taking(OneReply):
        def reply(self, message: Message) -> Reply:
            message.tool_calls[0].arguments.pop("fruit")
            return Reply([Message("tool", "3")])

    stage = make_stage(Taking())
    stage.start("train", 0, 0)
    assert say(stage, CALL).action == "price(fruit='fig')"


def test_opening_that_ends_with_the_assistant_is_refused() -> None:
    environment = OneReply()
    environment.messages = [Message("assistant", "x", tool_calls=(ToolCall("price"),))]
    with pytest.raises(UserCodeError, match="end with a message of user or tool"):
        make_stage(environment).start("train", 0, 0)
