"""A harness at the terminal: a person answers its requests, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from actors.episode import cache_codecs
from actors.stage import StepOutcome
from config import Config
from envs.base import Environment, Split
from protocol.chat_codec import ChatCodec
from protocol.tool_calls import format_hermes
from supervisor.cli.check import TURN_END, CharacterPrompter, build_character_codec
from supervisor.cli.harness_player import Respond, describe_task, play_requests
from supervisor.cli.play_conversation import ask_line, read_line
from supervisor.job import environment_errors

if TYPE_CHECKING:
    from learner.model.local_generation import LocalGenerator


def play_harness(
    config: Config,
    harness: Environment,
    split: Split,
    task: int,
    generate: LocalGenerator | None,
    console: Console,
) -> bool:
    """Play one task until the harness ends or the player stops; returns whether it was solved.

    `generate` answers in a person's place.
    """
    play = partial(play_requests, config, harness, (split, task))
    with environment_errors(config):
        console.print(describe_task(harness, split, task), markup=False, highlight=False)
        if generate is None:
            respond = ask_person(console)
            turns = play(CharacterPrompter(), build_character_codec, respond, sys.maxsize)
        else:
            prompter = generate.prompter
            limit = config.engine.max_model_len
            turns = play(prompter, cache_codecs(prompter), generate.sample, limit)
        return print_turns(turns, console)


def ask_person(console: Console) -> Respond:
    """Respond as somebody at the terminal does, who is shown what is new in each prompt."""
    prompter = CharacterPrompter()
    codec = ChatCodec(prompter)
    read = ""

    def respond(prompt: list[int]) -> list[int] | None:
        nonlocal read
        text = prompter.decode_exactly(prompt)
        new = text.removeprefix(read).replace(TURN_END, "\n")
        console.print(new.removesuffix("assistant: "), end="", highlight=False, markup=False)
        line = ask_line()
        if line is None:
            return None
        said = read_line(line)
        words = said.content
        if said.tool_calls:
            words = format_hermes([(call.name, call.arguments) for call in said.tool_calls])
        read = f"{text}{words}{TURN_END}"
        return codec.encode_words(words)

    return respond


def print_turns(outcomes: Iterator[StepOutcome], console: Console) -> bool:
    """Print how the turns of an episode went; returns whether the task was solved."""
    for turns, outcome in enumerate(outcomes, 1):
        mark = "" if outcome.valid else "  (invalid)"
        console.print(f"> {outcome.action}{mark}", highlight=False, markup=False)
        if outcome.prompt is None:
            scores = "".join(f", {name} {value:g}" for name, value in outcome.scores.items())
            end = "solved" if outcome.success else "not solved"
            console.print(
                f"{end}: reward {outcome.reward:g} after {turns} turns{scores}",
                highlight=False,
                markup=False,
            )
            return outcome.success
    return False
