"""Tokens that end a thought."""

from __future__ import annotations

import pytest

from config import Config
from controller.think_tokens import answer_after_thought
from envs.registry import make_environment


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("alfworld", "</think>\n<action>"),
        ("webshop", "</think>\n<action>"),
        ("search", "</think>\n"),
        ("gymnasium", "</think>\n<action>"),
    ],
)
def test_what_is_forced_is_how_answers_of_the_environment_go_on(
    environment: str, said: str
) -> None:
    config = Config(env=type(Config().env)(name=environment))
    assert (
        answer_after_thought(make_environment(environment, **config.environment_settings())) == said
    )
