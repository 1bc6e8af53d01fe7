"""Conversations that branch go on from the tokens of the answers that they extend."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chat_codec import Answer, ChatCodec
from protocol.openai_answers import build_answer_message
from protocol.openai_requests import read_echo
from protocol.transcripts import Branch, TranscriptTree
from tests.fixtures.conversations import TOOL, say, texts
from tests.fixtures.templates import MISTRAL, PLAIN, make_chat_prompter

QUESTION = say("user", "2 + 2?")


cached_prompter = cache(make_chat_prompter)


def show(answer: Answer) -> Any:
    return read_echo(build_answer_message(answer))


class Talk:
    """Conversations of an episode with one template."""

    def __init__(self, template: str = PLAIN, tools: Any = (), **settings: Any) -> None:
        self.prompter = cached_prompter(template, **settings)
        past_thoughts = settings.get("past_thoughts", "keep")
        self.tree = TranscriptTree(
            lambda tools: ChatCodec(self.prompter, tools, past_thoughts=past_thoughts)
        )
        self.tools = tools

    def open(self, messages: list[Any]) -> Branch:
        return self.tree.open(messages, self.tools)

    def answer(self, branch: Branch, text: str) -> tuple[Any, list[int]]:
        """The message that comes of a response, and its tokens."""
        tokens = self.prompter.encode([text])[0]
        return show(self.tree.read(branch, tokens, show)), tokens


@given(
    st.lists(texts, min_size=1, max_size=8),
    st.lists(st.integers(0, 7), min_size=8, max_size=8),
    st.booleans(),
)
def test_branch_begins_with_the_tokens_that_it_extends(
    said: list[str], parents: list[int], has_tools: bool
) -> None:
    """Whatever tree of conversations an agent makes."""
    talk = Talk(tools=[TOOL] if has_tools else [])
    known: list[tuple[list[Any], list[int]]] = [([QUESTION], [])]
    for number, (text, parent) in enumerate(zip(said, parents, strict=False)):
        messages, past = known[parent % len(known)]
        branch = talk.open(messages)
        assert branch.prompt[: len(past)] == past
        assert not branch.rewritten
        answer, tokens = talk.answer(branch, f"{number}{text}<|im_end|>")
        following = say("user", "Why?")
        if answer.get("tool_calls"):
            call = answer["tool_calls"][-1]
            following = say("tool", "4", tool_call_id=call["id"], name=call["function"]["name"])
        known.append(([*messages, answer, following], branch.prompt + tokens))


def test_thought_that_the_agent_leaves_out_is_still_read() -> None:
    talk = Talk()
    branch = talk.open([QUESTION])
    answer, tokens = talk.answer(branch, "<think>hm</think>4<|im_end|>")
    del answer["reasoning_content"]
    after = talk.open([QUESTION, answer, say("user", "Why?")])
    assert after.prompt[: len(branch.prompt + tokens)] == branch.prompt + tokens


@pytest.mark.parametrize(
    "change", [{"content": "5"}, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
)
def test_answer_that_is_said_otherwise_begins_anew(change: dict[str, Any]) -> None:
    talk = Talk()
    answer, _ = talk.answer(talk.open([QUESTION]), "4<|im_end|>")
    assert talk.open([QUESTION, answer | change, say("user", "Why?")]).rewritten


def test_same_answer_with_other_tools_begins_anew() -> None:
    talk = Talk()
    answer, _ = talk.answer(talk.open([QUESTION]), "4<|im_end|>")
    talk.tools = [TOOL]
    assert talk.open([QUESTION, answer, say("user", "Why?")]).rewritten


def test_template_that_rewrites_the_past_begins_anew() -> None:
    talk = Talk(past_thoughts="template")
    answer, _ = talk.answer(talk.open([QUESTION]), "<think>hm</think>4<|im_end|>")
    assert talk.open([QUESTION, answer, say("user", "Why?")]).rewritten


def test_agent_may_speak_for_the_policy_after_its_answer() -> None:
    talk = Talk()
    branch = talk.open([QUESTION])
    answer, tokens = talk.answer(branch, "4<|im_end|>")
    words = [say("user", "Why?"), say("assistant", "I count."), say("user", "How?")]
    after = talk.open([QUESTION, answer, *words])
    assert after.prompt[: len(branch.prompt + tokens)] == branch.prompt + tokens
    assert "I count." in talk.prompter.decode_exactly(after.prompt)


def test_template_that_refuses_messages_says_so() -> None:
    talk = Talk(MISTRAL, [TOOL])
    messages = [QUESTION, say("tool", "4", tool_call_id="short", name="calculate")]
    with pytest.raises(ValueError, match="nine letters"):
        talk.open(messages)
