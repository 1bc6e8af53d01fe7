"""Demonstrations of a conversation have the tokens that a run's prompts have."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from envs.conversation import ConversationTurn, Message, ToolCall
from envs.play import ExpertEpisode, play_expert_episode
from learner.data.rows import merge_turns
from learner.warm_start.demonstrations import TurnTokenizer, list_texts
from tests.fixtures.templates import TEMPLATES, make_chat_prompter
from tests.fixtures.tool_environment import prices_with_expert


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_each_prompt_goes_on_where_the_response_before_ended(template: str) -> None:
    episode = play_expert_episode(prices_with_expert(), "train", 0, random.Random(0))
    samples = TurnTokenizer(make_chat_prompter(template)).tokenize(episode)
    assert len(samples) == len(episode.conversation)
    for sample, following in pairwise(samples):
        before = [*sample.prompt, *sample.response]
        assert [*following.prompt[: len(before)]] == before


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_begin_anew_where_the_template_drops_thoughts(name: str) -> None:
    """A template that shows the thoughts of calls does not drop them until the user speaks."""
    episode = play_expert_episode(prices_with_expert(), "train", 0, random.Random(0))
    prompter = make_chat_prompter(TEMPLATES[name], past_thoughts="template")
    samples = TurnTokenizer(prompter).tokenize(episode)
    rows = merge_turns(samples)
    assert [len(row) for row in rows] == ([3] if name == "drops thoughts" else [1, 1, 1])


def test_calls_that_a_template_cannot_hold_are_not_imitated() -> None:
    """A template of single calls would teach the first one alone."""
    calls = (ToolCall("price", {"fruit": "fig"}), ToolCall("price", {"fruit": "plum"}))
    answer = Message("assistant", tool_calls=calls)
    episode = ExpertEpisode(
        task="?",
        task_type="purchase",
        success=True,
        turns=[],
        conversation=[ConversationTurn((Message("user", "?"),), answer, True)],
        tools=prices_with_expert().tools,
    )
    with pytest.raises(ValueError, match="make one call at a time"):
        TurnTokenizer(make_chat_prompter(TEMPLATES["llama"])).tokenize(episode)


def test_mistake_made_on_purpose_is_in_the_prompt_and_not_imitated() -> None:
    episode = play_expert_episode(
        prices_with_expert(), "train", 0, random.Random(0), expert_error_rate=0.5
    )
    taught = [turn for turn in episode.conversation if turn.taught]
    samples = TurnTokenizer(make_chat_prompter(TEMPLATES["plain"])).tokenize(episode)
    assert 0 < len(taught) < len(episode.conversation)
    assert len(samples) == len(taught)


def test_texts_have_the_tools_once() -> None:
    episode = play_expert_episode(prices_with_expert(), "train", 0, random.Random(0))
    prompts = [prompt for prompt, _ in list_texts(episode)]
    assert ["Tools:" in prompt for prompt in prompts] == [True, False, False]
