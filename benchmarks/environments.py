"""Measure how fast environments are on one core, and what they cost in memory.

Beside them is what others use for the same games, where it is installed: TextWorld's own engine,
and skyrl-gym's search environment with our retriever as its server.

`python -m benchmarks.environments` (a minute; on an idle machine, `taskset -c 0` before it)
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from envs.alfworld.environment import AlfWorld
from envs.alfworld.reference import TextWorldGame, draw_command, missing_packages
from envs.base import Environment
from envs.play import play_expert_episode, start_episode
from envs.registry import make_environment
from envs.search.environment import Search
from protocol.lifetime import die_with
from supervisor.endpoints import free_port

SECONDS = 3.0
"""For each figure."""
STOCK_GAMES = 3
STOCK_STEPS = 20


def main() -> None:
    table = Table(
        "one core",
        "steps/s",
        "resets/s",
        "MB a further process",
        "expert wins",
        title="environments, held-out tasks",
    )
    for name, settings in (
        ("alfworld", {}),
        ("alfworld", {"scene_size": "real"}),
        ("webshop", {}),
        ("search", {}),
    ):
        environment = make_environment(name, **settings)
        steps, resets, won = _expert_speed(environment)
        label = " ".join([name, *map(str, settings.values())])
        table.add_row(
            label,
            f"{steps:,.0f}",
            f"{resets:,.0f}",
            f"{_memory_of_a_fork(environment):.0f}",
            f"{won:.1%}",
        )
    if importlib.util.find_spec("skyrl_gym"):
        steps, resets = _skyrl_speed()
        table.add_row("search by skyrl-gym", f"{steps:,.0f}", f"{resets:,.0f}", "", "")
    missing = missing_packages()
    if missing:
        table.caption = (
            f"TextWorld's own engine is not measured: {', '.join(missing)} not installed"
        )
    else:
        steps, resets = _stock_speed(AlfWorld())
        table.add_row("alfworld by TextWorld", f"{steps:,.1f}", f"{resets:,.1f}", "", "")
    Console().print(table)


def _expert_speed(environment: Environment) -> tuple[float, float, float]:
    """Measure the expert's actions: (steps a second, resets a second, share of episodes won).

    The expert's own time is left out.
    """
    step_seconds = reset_seconds = 0.0
    steps = episodes = won = 0
    while step_seconds + reset_seconds < SECONDS and episodes < environment.size("held_out"):
        played = play_expert_episode(environment, "held_out", episodes, random.Random(episodes))
        actions = [environment.parse(response, ()).action for _, response in played.turns]
        episode, seconds = _timed(
            partial(start_episode, environment, "held_out", episodes, episodes)
        )
        reset_seconds += seconds
        for action in actions:
            step_seconds += _timed(lambda: episode.step(action))[1]  # noqa: B023
        steps = steps + len(actions)
        episodes = episodes + 1
        won = won + played.success
    return steps / step_seconds, episodes / reset_seconds, won / episodes


def _memory_of_a_fork(environment: Environment) -> float:
    """MB that a process forked from this one has for itself after fifty episodes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def play() -> None:
        die_with(os.getppid())
        for number in range(50):
            play_expert_episode(environment, "train", number, random.Random(number))
        sender.send(_private_megabytes())

    process = context.Process(target=play)
    process.start()
    megabytes = receiver.recv()
    process.join()
    return megabytes


def _private_megabytes() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _stock_game(environment: AlfWorld, number: int) -> TextWorldGame:
    return TextWorldGame(environment.game("held_out", number))


def _stock_speed(environment: AlfWorld) -> tuple[float, float]:
    """(steps a second, resets a second) of TextWorld's engine on the same games."""
    reset_seconds = step_seconds = 0.0
    for number in range(STOCK_GAMES):
        original, seconds = _timed(partial(_stock_game, environment, number))
        reset_seconds += seconds
        rng = random.Random(number)
        for _ in range(STOCK_STEPS):
            command = draw_command(original.admissible, rng)
            step_seconds += _timed(lambda: original.step(command))[1]  # noqa: B023
    return STOCK_GAMES * STOCK_STEPS / step_seconds, STOCK_GAMES / reset_seconds


def _skyrl_speed() -> tuple[float, float]:
    """Measure skyrl-gym's environment on our questions: (steps a second, resets a second).

    It asks a server that is another process.
    """
    from aiohttp import web
    from skyrl_gym.envs.search.env import SearchEnv, SearchEnvConfig

    from envs.search.facts import load_passages
    from envs.search.index import BM25Index
    from envs.search.server import build_app

    port = free_port()

    def serve() -> None:
        die_with(os.getppid())
        web.run_app(
            build_app(BM25Index(load_passages())),
            host="127.0.0.1",
            port=port,
            print=None,
            access_log=None,
        )

    server = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    server.start()
    _wait_for(port)
    environment = make_environment("search")
    assert isinstance(environment, Search)
    step_seconds = reset_seconds = 0.0
    steps = episodes = 0
    while step_seconds < SECONDS:
        played = play_expert_episode(environment, "held_out", episodes, random.Random(episodes))
        extras = {
            "reward_spec": {
                "ground_truth": {"target": list(environment.question("held_out", episodes).answers)}
            },
            "max_turns": 9,
        }
        config = SearchEnvConfig(search_url=f"http://127.0.0.1:{port}/retrieve")
        episode, seconds = _timed(lambda: SearchEnv(config, extras))  # noqa: B023
        reset_seconds += seconds
        for _, response in played.turns:
            step_seconds += _timed(lambda: episode.step(response))[1]  # noqa: B023
        steps = steps + len(played.turns)
        episodes = episodes + 1
    server.terminate()
    server.join()
    return steps / step_seconds, episodes / reset_seconds


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError("the retriever did not start")


def _timed(function: Callable):
    started = time.perf_counter()
    return function(), time.perf_counter() - started


if __name__ == "__main__":
    main()
