"""`python run.py play`: one episode at the terminal.

A person plays it, the environment's expert, or a checkpoint.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from config import Config, ConfigError
from config.resolve import parse_overrides, resolve, resolve_recorded
from envs.base import Environment, Episode, Split
from envs.conversation import is_conversation, tools_of
from envs.harness import is_harness
from envs.play import close_episode, start_episode
from envs.view import AgentView
from protocol.chat_codec import ChatCodec
from protocol.conversation import build_codec
from supervisor.cli.check import CharacterPrompter
from supervisor.cli.play_conversation import (
    ConversationStage,
    Respond,
    ask_person,
    follow_expert,
    play_conversation,
)
from supervisor.cli.play_harness import play_harness
from supervisor.job import build_environment, environment_errors
from supervisor.models import find_checkpoint
from telemetry.work_clock import show_work

if TYPE_CHECKING:
    from learner.model.local_generation import LocalGenerator

ACTION_COLUMNS = 2

_TAG = re.compile(r"</?[a-z_]+>", re.IGNORECASE)


@dataclass(frozen=True)
class Move:
    """The move of a player in a turn."""

    action: str
    speech: str = ""
    """Text around the action."""
    valid: bool = True
    """The action had the right form."""


Player = Callable[[AgentView], Move | None]
"""A function that chooses the move; None where the player has had enough."""


def main(arguments: list[str]) -> int:
    """Play or watch one episode."""
    parser = argparse.ArgumentParser(
        prog="run.py play",
        description=(
            "One episode at the terminal. Any setting of a run may follow (--env NAME, "
            "--section.setting VALUE)."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of a run, in TOML")
    parser.add_argument(
        "--task", type=int, default=0, metavar="N", help="number of the task (default 0)"
    )
    parser.add_argument(
        "--split",
        choices=("train", "held_out"),
        default="held_out",
        help="where the task is from (default held_out)",
    )
    parser.add_argument(
        "--watch",
        default="",
        metavar="WHO",
        help="expert, a run, or the directory of a checkpoint; without it you play",
    )
    options, rest = parser.parse_known_args(arguments)
    config = resolve_played(options.watch, parse_overrides(rest), options.config)
    play(config, options.split, options.task, options.watch, Console())
    return 0


def resolve_played(watch: str, overrides: dict[str, str], file: Path | None = None) -> Config:
    """Resolve the settings to play with: over those of the run, if one is watched.

    ConfigError for a file of settings beside those of a run.
    """
    checkpoint = None
    if watch not in ("", "expert"):
        checkpoint = find_checkpoint(watch)
    if checkpoint is None or not (checkpoint.run_dir / "config.toml").is_file():
        return resolve(file, overrides)
    if file is not None:
        raise ConfigError(
            "--watch takes the settings of the run it watches; leave --config out (single "
            "settings may be changed)"
        )
    return resolve_recorded(checkpoint.run_dir / "config.toml", overrides).config


def play(config: Config, split: Split, task: int, watch: str, console: Console) -> bool:
    """Play one episode, until it ends or the player has had enough; returns whether it was solved.

    `watch`: "" for a person at the terminal, "expert", or the directory of a checkpoint.
    ConfigError for a task, a directory or an environment that does not exist.
    """
    environment = build_environment(config)
    if not 0 <= task < environment.size(split):
        raise ConfigError(
            f"--task: {split} has tasks 0 to {environment.size(split) - 1}, not {task}"
        )
    if is_harness(environment):
        generate = None
        if watch == "expert":
            raise ConfigError(f"env.name: {environment.name} is a harness, which has no expert")
        if watch:
            generate = _load_generator(config, watch)
        return play_harness(config, environment, split, task, generate, console)
    if is_conversation(environment):
        return _play_conversation(config, environment, split, task, watch, console)
    with environment_errors(config):
        episode = start_episode(environment, split, task, config.run.seed)
    try:
        return _play(config, environment, episode, f"{split} task {task}", watch, console)
    finally:
        with environment_errors(config):
            close_episode(episode)


def _play_conversation(
    config: Config, environment: Environment, split: Split, task: int, watch: str, console: Console
) -> bool:
    """Play an episode of messages, in a model's own form if a model plays."""
    codec = ChatCodec(CharacterPrompter(), tools_of(environment))
    limit = sys.maxsize  # nobody's context but a model's
    respond: Callable[[ConversationStage], Respond] = ask_person
    if watch == "expert":
        respond = partial(follow_expert, config, environment)
    elif watch:
        generate = _load_generator(config, watch)
        limit = config.engine.max_model_len
        with environment_errors(config):
            codec = build_codec(generate.prompter, tools_of(environment))
        respond = lambda _: generate.sample  # noqa: E731
    stage = ConversationStage(environment, codec, limit)
    return play_conversation(config, environment, stage, split, task, respond, console)


def _play(
    config: Config,
    environment: Environment,
    episode: Episode,
    name: str,
    watch: str,
    console: Console,
) -> bool:
    with environment_errors(config):
        player = _build_player(config, environment, episode, watch, console)
        view = environment.view(episode)
    console.print(
        f"[bold]{_escape(episode.task)}[/]  [dim]{_escape(episode.task_type)}, {name}[/]",
        highlight=False,
    )
    while True:
        console.print(f"\n[bold]{view.step}[/] {_escape(view.observation.text)}", highlight=False)
        move = player(view)
        if move is None:
            return False
        if move.speech:
            console.print(f"[dim]{_escape(move.speech)}[/]", highlight=False)
        mark = "  [red]invalid[/]" * (not move.valid)
        console.print(f"[cyan]> {_escape(move.action)}[/]{mark}", highlight=False)
        with environment_errors(config):
            result = episode.step(move.action)
        if result.done:
            break
        view.record(move.action, result.observation)
    console.print(f"\n{_escape(result.observation.text)}", highlight=False)
    scores = "".join(f", {name} {value:g}" for name, value in episode.scores.items())
    outcome = "solved" if result.success else "not solved"
    console.print(f"[bold]{outcome}[/]: reward {result.reward:g} after {view.step} turns{scores}")
    return result.success


def _build_player(
    config: Config, environment: Environment, episode: Episode, watch: str, console: Console
) -> Player:
    if not watch:
        return lambda view: _ask(environment, view, console)
    if watch == "expert":
        return _build_expert_player(config, environment, episode)
    return _build_model_player(config, environment, watch)


def _build_expert_player(config: Config, environment: Environment, episode: Episode) -> Player:
    try:
        expert = environment.expert(episode, random.Random(config.run.seed))
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def choose(view: AgentView) -> Move:
        thought, action = expert.act(view)
        return Move(action, thought)

    return choose


def _build_model_player(config: Config, environment: Environment, watch: str) -> Player:
    generate = _load_generator(config, watch)

    def choose(view: AgentView) -> Move:
        response = generate(environment.prompt(view))
        parsed = environment.parse(response, view.observation.admissible)
        return Move(parsed.action, response, parsed.valid)

    return choose


def _load_generator(config: Config, watch: str) -> LocalGenerator:
    """Load the policy that is to play; ConfigError for a directory that has none."""
    checkpoint = find_checkpoint(watch)
    directory = Path(watch)
    if checkpoint is not None:
        directory = checkpoint.directory
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"--watch: {watch} is neither 'expert', nor a run, nor the directory of a checkpoint "
            "(it has no config.json)"
        )
    with show_work(f"loading {directory}"):
        from learner.model.local_generation import LocalGenerator  # torch takes seconds to load

        return LocalGenerator(
            directory,
            config.decoding(evaluation=True),
            config.sampling.max_tokens,
            config.run.seed,
            config.model.chat_options(),
        )


def _ask(environment: Environment, view: AgentView, console: Console) -> Move | None:
    """Read an action from the terminal; None where the player has had enough.

    It is given by its number in the list, its text, or a response as an agent gives it. An empty
    line asks again; the end of the input, or q, is the end.
    """
    admissible = view.observation.admissible
    if not admissible:
        console.print(
            f"[dim]{_escape(environment.prompt(view).splitlines()[-1])}[/]", highlight=False
        )
    # Where names are numbers, a number of the list would be taken for another one's name.
    numbered = not any(action.isdecimal() for action in admissible)
    _list_actions(admissible, numbered, console)
    prompt = "action (text, q to stop): "
    if numbered and admissible:
        prompt = "action (number or text, q to stop): "
    while True:
        try:
            answer = input(prompt).strip()
        except EOFError:
            return None
        if answer in admissible:
            return Move(answer)
        if answer == "q":
            return None
        if not answer:
            continue
        if answer.isdecimal() and admissible:
            if numbered and 1 <= int(answer) <= len(admissible):
                return Move(admissible[int(answer) - 1])
            continue
        return _parse_answer(environment, answer, admissible)


def _list_actions(admissible: tuple[str, ...], numbered: bool, console: Console) -> None:
    cells = [f"    {action}" for action in admissible]
    if numbered:
        cells = [f"{number:>3} {action}" for number, action in enumerate(admissible, 1)]
    width = max(map(len, cells), default=0) + 2
    for start in range(0, len(cells), ACTION_COLUMNS):
        row = cells[start : start + ACTION_COLUMNS]
        line = "".join(f"{cell:<{width}}" for cell in row).rstrip()
        console.print(line, highlight=False, markup=False)


def _parse_answer(environment: Environment, answer: str, admissible: tuple[str, ...]) -> Move:
    """The move of an answer: with tags, as the environment reads an agent's; else its text."""
    parsed = environment.parse(answer, admissible)
    if parsed.valid or _TAG.search(answer):
        return Move(parsed.action, valid=parsed.valid)
    return Move(answer)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
