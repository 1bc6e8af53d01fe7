"""`python run.py play`: one episode at the terminal, played by a person, by the environment's
expert, or by a checkpoint."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from config import Config, ConfigError
from envs.base import Environment, Episode, Split
from envs.play import close_episode, start_episode
from envs.view import AgentView
from supervisor.job import build_environment, environment_errors

COLUMNS = 2
"""Of the list of actions."""

_TAG = re.compile(r"</?[a-z_]+>", re.IGNORECASE)


@dataclass(frozen=True)
class Move:
    """What a player does in a turn: the action, what was said around it, and whether it had the
    right form."""

    action: str
    said: str = ""
    valid: bool = True


Player = Callable[[AgentView], Move | None]
"""None: the player has had enough."""


def play(config: Config, split: Split, task: int, watch: str, console: Console) -> bool:
    """Play one episode to its end, or to that of the player's patience; whether it was solved.

    `watch`: "" for a person at the terminal, "expert", or the directory of a checkpoint.
    ConfigError for a task, a directory or an environment that does not exist.
    """
    environment = build_environment(config)
    if not 0 <= task < environment.size(split):
        raise ConfigError(
            f"--task: {split} has tasks 0 to {environment.size(split) - 1}, not {task}"
        )
    with environment_errors(config):
        episode = start_episode(environment, split, task, config.run.seed)
    try:
        return _play(config, environment, episode, f"{split} task {task}", watch, console)
    finally:
        close_episode(episode)


def _play(
    config: Config,
    environment: Environment,
    episode: Episode,
    name: str,
    watch: str,
    console: Console,
) -> bool:
    with environment_errors(config):
        player = _player(config, environment, episode, watch, console)
        view = environment.view(episode)
    console.print(
        f"[bold]{_escaped(episode.task)}[/]  [dim]{_escaped(episode.task_type)}, {name}[/]",
        highlight=False,
    )
    while True:
        console.print(f"\n[bold]{view.step}[/] {_escaped(view.observation.text)}", highlight=False)
        move = player(view)
        if move is None:
            return False
        if move.said:
            console.print(f"[dim]{_escaped(move.said)}[/]", highlight=False)
        console.print(
            f"[cyan]> {_escaped(move.action)}[/]" + ("" if move.valid else "  [red]invalid[/]"),
            highlight=False,
        )
        with environment_errors(config):
            result = episode.step(move.action)
        if result.done:
            break
        view.record(move.action, result.observation)
    console.print(f"\n{_escaped(result.observation.text)}", highlight=False)
    scores = "".join(f", {name} {value:g}" for name, value in episode.scores.items())
    console.print(
        f"[bold]{'solved' if result.success else 'not solved'}[/]: reward {result.reward:g} "
        f"after {view.step} turns{scores}"
    )
    return result.success


def _player(
    config: Config, environment: Environment, episode: Episode, watch: str, console: Console
) -> Player:
    if not watch:
        return lambda view: _ask(environment, view, console)
    if watch == "expert":
        try:
            expert = environment.expert(episode, random.Random(config.run.seed))
        except ValueError as error:
            raise ConfigError(f"{config.env.name}: {error}") from None

        def demonstrated(view: AgentView) -> Move:
            thought, action = expert.act(view)
            return Move(action, thought)

        return demonstrated
    directory = Path(watch)
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"--watch: {watch} is neither 'expert' nor the directory of a checkpoint (it has no "
            "config.json)"
        )
    from learner.model.local_generation import LocalGenerator  # torch takes seconds to load

    sampler = LocalGenerator(
        directory, config.sampling.temperature, config.sampling.max_tokens, config.run.seed
    )

    def sampled(view: AgentView) -> Move:
        response = sampler(environment.prompt(view))
        parsed = environment.parse(response, view.observation.admissible)
        return Move(parsed.action, response, parsed.valid)

    return sampled


def _ask(environment: Environment, view: AgentView, console: Console) -> Move | None:
    """Read an action from the terminal: its number in the list, its text, or a response as an agent
    gives it.

    An empty line asks again; the end of the input, or q, is the end.
    """
    admissible = view.observation.admissible
    if not admissible:
        console.print(
            f"[dim]{_escaped(environment.prompt(view).splitlines()[-1])}[/]", highlight=False
        )
    # Where names are numbers, a number of the list would be taken for another one's name.
    numbered = not any(action.isdecimal() for action in admissible)
    _list_actions(admissible, numbered, console)
    ways = "number or text" if numbered and admissible else "text"
    while True:
        try:
            answer = input(f"action ({ways}, q to stop): ").strip()
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
        return _read(environment, answer, admissible)


def _list_actions(admissible: tuple[str, ...], numbered: bool, console: Console) -> None:
    width = max((len(action) for action in admissible), default=0) + 6
    for start in range(0, len(admissible), COLUMNS):
        numbers = range(start, min(start + COLUMNS, len(admissible)))
        row = [
            f"{i + 1:>3} {admissible[i]}" if numbered else f"    {admissible[i]}" for i in numbers
        ]
        console.print(
            "".join(f"{cell:<{width}}" for cell in row).rstrip(), highlight=False, markup=False
        )


def _read(environment: Environment, answer: str, admissible: tuple[str, ...]) -> Move:
    """The move of an answer that has tags, as the environment reads an agent's; the text itself
    without them."""
    parsed = environment.parse(answer, admissible)
    if parsed.valid or _TAG.search(answer):
        return Move(parsed.action, valid=parsed.valid)
    return Move(answer)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
