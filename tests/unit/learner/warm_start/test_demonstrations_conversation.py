"""Demonstrations of a conversation have the tokens that a run's prompts have."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from envs.play import play_expert_episode
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
