"""`{this_command()} eval MODEL`: play held-out tasks, without training.

The model is played through engines and actors, as in an evaluation of a run.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from config import Config, ConfigError
from config.options import this_command, values_of
from config.resolve import full_name, parse_overrides, resolve, resolve_recorded
from envs.base import Environment
from envs.play import close_episode, start_episode
from protocol.files import atomic_write
from protocol.messages import StopReason, Trajectory
from supervisor.cli.train import prepare_run, print_places, run_to_end
from supervisor.job import build_environment, environment_errors
from supervisor.models import find_checkpoint
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.analysis.intervals import mean_interval, wilson_interval
from telemetry.summary import package_versions

EXPERT = "expert"
RESULTS_FILE = "eval.json"

FIXED_SETTINGS = {
    "run.max_updates": "0",
    "run.tracker": "none",
    "warm_start.episodes": "0",
    "learner.ranks": "1",
}
"""Settings of an evaluation: nothing is trained."""


class EvaluatedEpisode(msgspec.Struct, frozen=True):
    """One held-out task, as it was played."""

    task: int
    task_type: str
    success: bool
    reward: float
    turns: int
    tokens: int = 0
    cut_off: int = 0
    """Turns whose response the token budget cut off."""
    invalid: int = 0
    """Turns without a valid action."""
    scores: dict[str, float] = {}


def main(arguments: list[str]) -> int:
    """Evaluate a model, print a table and write its figures."""
    parser = argparse.ArgumentParser(
        prog="run.py eval",
        usage=(
            f"{this_command()} eval MODEL [--env NAME] [--episodes N] [--output FILE] [--serial] "
            "[--SETTING VALUE ...]"
        ),
        description=(
            "Play held-out tasks once each, without training. MODEL is a run (its newest "
            "checkpoint), RUN@UPDATE, RUN@best, the directory of a checkpoint or of any Hugging "
            "Face model, a model of the hub, or 'expert', the environment's own. A run's "
            "checkpoint is played with the settings of its run, unless others are given."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument("--episodes", metavar="N", help="held-out tasks to play (eval.episodes)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: eval.json in run.dir")
    parser.add_argument(
        "--serial", action="store_true", help="in one process, with a small engine of our own"
    )
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        raise ConfigError(f"eval: name the model first: {this_command()} eval MODEL [OPTIONS]")
    options, rest = parser.parse_known_args(arguments)
    overrides = {full_name(name): text for name, text in parse_overrides(rest).items()}
    if options.episodes:
        overrides["eval.episodes"] = options.episodes
    console = Console()
    if options.model == EXPERT:
        return _evaluate_expert(overrides, options.output, console)
    return _evaluate_model(options.model, overrides, options.output, options.serial, console)


def _evaluate_model(
    model: str, overrides: dict[str, str], output: Path | None, serial: bool, console: Console
) -> int:
    config = evaluation_config(model, overrides, serial)
    job = prepare_run(config, serial, resume=False)
    print_places(job, console)
    status, _ = run_to_end(job, serial, console)
    if status != 0:
        return status
    run_dir = Path(job.run_dir)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)  # copies of the evaluated model
    recorded = [
        episode for _, episode in read_episodes(run_dir / EPISODES_DIR) if episode.key.evaluation
    ]
    episodes = [summarize_episode(e) for e in recorded if e.drop_reason is None]
    results = build_results(config, model, episodes, dropped=len(recorded) - len(episodes))
    _show(results, console)
    _write(results, output or run_dir / RESULTS_FILE, console)
    print(f"its episodes: {this_command()} replay {shlex.quote(job.run_dir)}")
    return 0


def evaluation_config(model: str, overrides: Mapping[str, str], serial: bool) -> Config:
    """The configuration of an evaluation.

    A run's checkpoint has the settings of its run. Raises ConfigError for settings of an evaluation
    that are fixed, and as `resolve` does.
    """
    for name in overrides:
        if name in FIXED_SETTINGS or name == "model.name":
            raise ConfigError(f"eval: {name} is fixed here; leave it out")
    checkpoint = find_checkpoint(model)
    run_dir = Path("runs") / time.strftime("eval-%Y%m%d-%H%M%S")
    settings = {"run.dir": str(run_dir), "model.name": model}
    settings |= {**overrides, **FIXED_SETTINGS}
    if checkpoint is None:
        return resolve(None, settings, serial)
    settings["model.name"] = str(checkpoint.directory)
    file = checkpoint.run_dir / "config.toml"
    if not file.is_file():
        raise ConfigError(f"eval: {checkpoint.run_dir} has no config.toml")
    return resolve_recorded(file, settings).config


def summarize_episode(episode: Trajectory) -> EvaluatedEpisode:
    """The figures of a recorded episode."""
    kept = [turn.kept for turn in episode.turns]
    return EvaluatedEpisode(
        task=episode.task_index,
        task_type=episode.task_type,
        success=episode.success,
        reward=sum(turn.reward for turn in episode.turns),
        turns=len(episode.turns),
        tokens=sum(response.length for response in kept),
        cut_off=sum(response.stop is StopReason.LENGTH for response in kept),
        invalid=sum(not turn.valid for turn in episode.turns),
        scores=dict(episode.scores),
    )


def _evaluate_expert(overrides: Mapping[str, str], output: Path | None, console: Console) -> int:
    """Let the environment's expert play held-out tasks, in this process."""
    config = resolve(None, dict(overrides))
    environment = build_environment(config)
    count = min(config.eval.episodes, environment.size("held_out"))
    with environment_errors(config):
        episodes = [
            play_expert(environment, task, config.run.seed)
            for task in track(range(count), "expert", console=console, transient=True)
        ]
    results = build_results(config, EXPERT, episodes, dropped=0)
    _show(results, console)
    if output is not None:
        _write(results, output, console)
    return 0


def play_expert(environment: Environment, task: int, seed: int) -> EvaluatedEpisode:
    """Let the expert play a held-out task to its end."""
    episode = start_episode(environment, "held_out", task, seed)
    try:
        view = environment.view(episode)
        expert = environment.expert(episode, random.Random(seed))
        reward = 0.0
        while True:
            _, action = expert.act(view)
            result = episode.step(action)
            reward += result.reward
            if result.done:
                break
            view.record(action, result.observation)
        return EvaluatedEpisode(
            task=task,
            task_type=episode.task_type,
            success=result.success,
            reward=reward,
            turns=view.step,
            scores=dict(episode.scores),
        )
    finally:
        close_episode(episode)


def build_results(
    config: Config, model: str, episodes: Sequence[EvaluatedEpisode], dropped: int
) -> dict[str, Any]:
    """The figures of an evaluation, as eval.json has them.

    Shares and means have 95 % intervals: Wilson's, and the normal one.
    """
    types = sorted({episode.task_type for episode in episodes})
    turns = sum(episode.turns for episode in episodes)
    scores = sorted({name for episode in episodes for name in episode.scores})
    results = {
        "model": model,
        "environment": config.env.name,
        "episodes": len(episodes),
        "dropped": dropped,
        "success": _share([episode.success for episode in episodes]),
        "success_by_type": {
            name: _share([e.success for e in episodes if e.task_type == name]) for name in types
        },
        "reward": _mean([episode.reward for episode in episodes]),
        "turns": _mean([float(episode.turns) for episode in episodes]),
        "scores": {
            name: _mean([e.scores[name] for e in episodes if name in e.scores]) for name in scores
        },
    }
    if model != EXPERT and turns:
        results["tokens_per_turn"] = sum(episode.tokens for episode in episodes) / turns
        results["cut_off_share"] = sum(episode.cut_off for episode in episodes) / turns
        results["invalid_share"] = sum(episode.invalid for episode in episodes) / turns
    results["settings"] = values_of(config)
    results["versions"] = package_versions()
    results["tasks"] = msgspec.to_builtins(list(episodes))
    return results


def _share(outcomes: Sequence[bool]) -> dict[str, float | int | None]:
    if not outcomes:
        return {"mean": None, "low": None, "high": None, "count": 0}
    share = sum(outcomes) / len(outcomes)
    low, high = wilson_interval(share, len(outcomes))
    return {"mean": share, "low": low, "high": high, "count": len(outcomes)}


def _mean(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {"mean": None, "low": None, "high": None, "count": 0}
    mean, low, high = mean_interval(values)
    return {"mean": mean, "low": low, "high": high, "count": len(values)}


def _show(results: Mapping[str, Any], console: Console) -> None:
    table = Table("held-out tasks", "played", "mean", "95 % interval", box=None)
    table.add_row("success", *_share_cells(results["success"]))
    for name, figures in results["success_by_type"].items():
        table.add_row(f"  {name}", *_share_cells(figures))
    for name in ("reward", "turns"):
        table.add_row(name, *_mean_cells(results[name]))
    for name, figures in results["scores"].items():
        table.add_row(f"score {name}", *_mean_cells(figures))
    console.print(table)
    for line in _notes(results):
        console.print(line, highlight=False, soft_wrap=True)


def _share_cells(figures: Mapping[str, Any]) -> list[str]:
    if figures["mean"] is None:
        return ["0", "-", "-"]
    interval = f"{figures['low']:.1%} - {figures['high']:.1%}"
    return [f"{figures['count']:,}", f"{figures['mean']:.1%}", interval]


def _mean_cells(figures: Mapping[str, Any]) -> list[str]:
    if figures["mean"] is None:
        return ["0", "-", "-"]
    interval = f"{figures['low']:.3g} - {figures['high']:.3g}"
    return [f"{figures['count']:,}", f"{figures['mean']:.3g}", interval]


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences on what the table does not show."""
    notes = []
    if results["dropped"]:
        notes.append(f"{results['dropped']} episodes were dropped, and count for nothing")
    if results.get("cut_off_share"):
        notes.append(
            f"{results['cut_off_share']:.1%} of the turns were cut off at sampling.max_tokens "
            f"({results['settings']['sampling.max_tokens']})"
        )
    if results.get("invalid_share"):
        notes.append(f"{results['invalid_share']:.1%} of the turns had no valid action")
    return notes


def _write(results: Mapping[str, Any], output: Path, console: Console) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, json.dumps(results, indent=1) + "\n", "--output")
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)
