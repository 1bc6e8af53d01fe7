"""Tokens that end a thought."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Config
from controller.think_tokens import answer_after_thought, load_think_tokens
from envs.registry import make_environment
from protocol.chat_format import ChatFormat
from protocol.prompting import Prompter
from tests.fixtures.chat_templates import CHATML, CLOSES, OPENS
from tests.fixtures.episodes import alfworld


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


@pytest.mark.parametrize(
    ("template", "begins_inside"), [(CHATML, False), (CLOSES, False), (OPENS, True)]
)
def test_load_think_tokens_of_an_opened_thought_begin_inside(
    small_policy: Path, template: str, begins_inside: bool
) -> None:
    """What is forced does not depend on where the thought was opened."""
    tokenizer_json = (small_policy / "tokenizer.json").read_bytes()
    prompter = Prompter(tokenizer_json, ChatFormat(template, end_tokens=[2]))
    tokens = load_think_tokens(small_policy, prompter, alfworld(), Config().control)
    assert tokens.tags.begins_inside == begins_inside
    assert tokens.tags.closing == ((tokens.closing_tokens[0],),)
    assert prompter.decode(tokens.closing_tokens) == "</think>\n<action>"
