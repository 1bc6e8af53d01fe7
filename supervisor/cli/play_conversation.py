"""One conversation at the terminal: a person's, the expert's, or a checkpoint's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
from rich.console import Console

from actors.conversation_stage import ConversationStage
from config import Config
from envs.base import Environment, Split
from envs.conversation import Message, ToolCall, describe_message, find_json_flaw, tools_of
from envs.play import make_expert
from protocol.arrays import INT32, pack
from protocol.tool_calls import to_json
from supervisor.job import environment_errors

Respond = Callable[[list[int]], list[int] | None]
"""Takes the tokens of a prompt, returns those of the response; None for no more."""


def play_conversation(
    config: Config,
    environment: Environment,
    stage: ConversationStage,
    split: Split,
    task: int,
    respond: Callable[[ConversationStage], Respond],
    console: Console,
) -> bool:
    """Play one conversation until it ends or the player stops; returns whether it was solved.

    `respond` gets the stage, when the conversation has started.
    """
    try:
        with environment_errors(config):
            opening = stage.start(split, task, config.run.seed)
            next_response = respond(stage)
        _print_tools(environment, console)
        shown = _print_messages(stage, 0, console)
        prompt = opening.prompt
        reward = 0.0
        turns = 0
        while prompt is not None:
            response = next_response(prompt)
            if response is None:
                return False
            with environment_errors(config):
                outcome = stage.step(pack(np.array(response), INT32))
            turns += 1
            reward += outcome.reward
            shown = _print_messages(stage, shown, console, outcome.valid)
            prompt = outcome.prompt
            if outcome.done:
                _print_outcome(outcome.success, reward, turns, outcome.scores, console)
                return outcome.success
        console.print(describe_overflow(config, stage), markup=False, highlight=False)
        return False
    finally:
        with environment_errors(config):
            stage.close()


def describe_overflow(config: Config, stage: ConversationStage) -> str:
    """Say that a conversation is too long for the context, and what to raise."""
    limit = config.engine.max_model_len
    tokens = f"{stage.prompt_tokens:,}"
    wanted = 2 * max(limit, stage.prompt_tokens)
    if not stage.prompt_tokens:
        tokens = f"far more than {limit:,}"
    return (
        f"the conversation has {tokens} tokens, and no longer fits the context of {limit:,}; "
        f"raise it: --engine.max_model_len {wanted}"
    )


def follow_expert(config: Config, environment: Environment, stage: ConversationStage) -> Respond:
    """Respond as the expert does; ValueError if nobody can demonstrate the task."""
    expert = make_expert(environment, stage.episode, random.Random(config.run.seed))

    def respond(_: list[int]) -> list[int]:
        with environment_errors(config):
            return stage.encode_answer(expert.act(list(stage.messages)))

    return respond


def ask_person(stage: ConversationStage) -> Respond:
    """Respond as somebody at the terminal does, in words or by NAME {"argument": ...}."""

    def ask(_: list[int]) -> list[int] | None:
        line = ask_line()
        if line is None:
            return None
        return stage.encode_answer(read_line(line))

    return ask


def ask_line() -> str | None:
    """Ask for an answer at the terminal; None if somebody wants to stop."""
    try:
        line = input('answer, or TOOL {"argument": ...} (q to stop): ').strip()
    except EOFError:
        return None
    if line == "q":
        return None
    return line


def read_line(line: str) -> Message:
    """Read a person's line: a call if it is a name and an object in JSON, else an answer."""
    name, brace, rest = line.partition("{")
    try:
        arguments = json.loads(brace + rest)
    except ValueError:
        return Message("assistant", line)
    if not isinstance(arguments, dict) or find_json_flaw(arguments) or not name.strip():
        return Message("assistant", line)
    return Message("assistant", tool_calls=(ToolCall(name.strip(), arguments),))


def _print_tools(environment: Environment, console: Console) -> None:
    for tool in tools_of(environment):
        text = f"tool: {to_json(tool['function'])}"
        console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _print_messages(
    stage: ConversationStage, shown: int, console: Console, valid: bool = True
) -> int:
    """Print what was said since `shown` messages; returns how many there are now."""
    for message in stage.messages[shown:]:
        if message.reasoning:
            console.print(message.reasoning, style="dim", markup=False, highlight=False)
        text = message.content
        style = None
        if message.role == "assistant":
            text = describe_message(message) + "  (invalid)" * (not valid)
            style = "cyan"
        console.print(f"{message.role}: {text}", style=style, markup=False, highlight=False)
    return len(stage.messages)


def _print_outcome(
    success: bool, reward: float, turns: int, scores: dict[str, float], console: Console
) -> None:
    words = "solved" if success else "not solved"
    figures = "".join(f", {name} {value:g}" for name, value in scores.items())
    console.print(f"[bold]{words}[/]: reward {reward:g} after {turns} turns{figures}")
