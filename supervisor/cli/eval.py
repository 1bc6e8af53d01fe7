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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from config import Config, ConfigError, Job
from config.evaluation import ONLY_SET, PlannedEpisode
from config.options import this_command, values_of
from config.resolve import full_name, parse_overrides, resolve, resolve_recorded
from envs.base import Environment
from envs.play import play_expert_episode
from protocol.files import atomic_write
from protocol.messages import StopReason, Trajectory
from supervisor.cli.train import prepare_run, print_places, run_to_end
from supervisor.job import build_environment, check_sets, environment_errors
from supervisor.models import find_checkpoint
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.analysis.intervals import mean_interval
from telemetry.analysis.repeated_trials import Trials, estimate_pass_at_k, reported_ks
from telemetry.summary import package_versions
from telemetry.work_clock import track

EXPERT = "expert"
RESULTS_FILE = "eval.json"

FIXED_SETTINGS = {
    "run.max_updates": "0",
    "run.tracker": "none",
    "warm_start.episodes": "0",
    "warm_start.data": "",
    "learner.ranks": "1",
}
"""Settings of an evaluation: nothing is trained."""


class EvaluatedEpisode(msgspec.Struct, frozen=True):
    """One episode of a held-out task, as it was played."""

    task: int
    """Number of the task in its split."""
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
    set: str = ONLY_SET
    """Name of the evaluation set; empty where there is only one, without a name."""
    index: int = 0
    """Number of the task in the set."""
    sample: int = 0
    """Number of the episode among those of the task."""


def main(arguments: list[str]) -> int:
    """Evaluate a model, print a table and write its figures."""
    parser = argparse.ArgumentParser(
        prog="run.py eval",
        usage=(
            f"{this_command()} eval MODEL [--env NAME] [--episodes N] [--samples K] "
            "[--sets NAME,NAME] [--output FILE] [--serial] [--SETTING VALUE ...]"
        ),
        description=(
            "Play held-out tasks, without training. MODEL is a run (its newest "
            "checkpoint), RUN@UPDATE, RUN@best, the directory of a checkpoint or of any Hugging "
            "Face model, a model of the hub, or 'expert', the environment's own. A run's "
            "checkpoint is played with the settings of its run, unless others are given."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument("--episodes", metavar="N", help="held-out tasks to play (eval.episodes)")
    parser.add_argument("--samples", metavar="K", help="episodes of each task (eval.samples)")
    parser.add_argument(
        "--sets", metavar="NAME,NAME", help="evaluation sets to play, of those of eval.sets"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: eval.json in run.dir; for the expert: none",
    )
    parser.add_argument(
        "--serial", action="store_true", help="in one process, with a small engine of our own"
    )
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        raise ConfigError(f"eval: name the model first: {this_command()} eval MODEL [OPTIONS]")
    options, rest = parser.parse_known_args(arguments)
    overrides = {full_name(name): text for name, text in parse_overrides(rest).items()}
    for name, text in (("eval.episodes", options.episodes), ("eval.samples", options.samples)):
        if text:
            overrides[name] = text
    console = Console()
    if options.model == EXPERT:
        config = choose_sets(resolve(None, dict(overrides)), options.sets)
        return _evaluate_expert(config, options.output, console)
    config = evaluation_config(options.model, overrides, options.serial)
    config = choose_sets(config, options.sets)
    job = prepare_run(config, options.serial, resume=False)
    return _evaluate_model(options.model, job, options.output, options.serial, console)


def choose_sets(config: Config, names: str | None) -> Config:
    """The configuration with those of its evaluation sets that are named, in that order.

    `names` are separated by commas; None: all. Raises ConfigError for a set that there is not.
    """
    if names is None:
        return config
    sets = {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in config.eval.sets:
            known = ", ".join(config.eval.sets) or "none"
            raise ConfigError(
                f"--sets: there is no evaluation set {name!r}; there are: {known} (--eval.sets."
                "NAME.SETTING VALUE makes one)"
            )
        sets[name] = config.eval.sets[name]
    if not sets:
        raise ConfigError("--sets: name one or more, or leave it out")
    evaluation = msgspec.structs.replace(config.eval, sets=sets)
    return msgspec.structs.replace(config, eval=evaluation)


def _evaluate_model(
    model: str, job: Job, output: Path | None, serial: bool, console: Console
) -> int:
    print_places(job, console)
    status = run_to_end(job, serial, console).status
    if status != 0:
        return status
    run_dir = Path(job.run_dir)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)  # copies of the evaluated model
    recorded = [
        episode for _, episode in read_episodes(run_dir / EPISODES_DIR) if episode.key.evaluation
    ]
    plan = job.config.evaluation_plan()
    episodes = [
        summarize_episode(e, plan.locate(e.key.member)) for e in recorded if e.drop_reason is None
    ]
    dropped = Counter(
        plan.locate(e.key.member).set.name for e in recorded if e.drop_reason is not None
    )
    results = build_results(job.config, model, episodes, dropped)
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


def summarize_episode(episode: Trajectory, planned: PlannedEpisode) -> EvaluatedEpisode:
    """The figures of a recorded episode, which the evaluation's plan has as `planned`."""
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
        set=planned.set.name,
        index=planned.index,
        sample=planned.sample,
    )


def _evaluate_expert(config: Config, output: Path | None, console: Console) -> int:
    """Let the environment's expert play held-out tasks, in this process."""
    environment = build_environment(config)
    check_sets(config, environment)
    environments = {name: build_environment(config, name) for name in config.own_settings_of_sets()}
    plan = config.evaluation_plan()
    planned = [
        one
        for one in map(plan.locate, range(plan.episodes))
        if one.task < environments.get(one.set.name, environment).size(one.set.split)
    ]
    with environment_errors(config):
        episodes = [
            play_expert(environments.get(one.set.name, environment), one, config.run.seed)
            for one in track(planned, "expert")
        ]
    results = build_results(config, EXPERT, episodes, dropped={})
    _show(results, console)
    if output is not None:
        _write(results, output, console)
    return 0


def play_expert(environment: Environment, planned: PlannedEpisode, seed: int) -> EvaluatedEpisode:
    """Let the expert play a task to its end; each sample of it has a seed of its own."""
    own_seed = seed + planned.sample
    episode = play_expert_episode(
        environment, planned.set.split, planned.task, random.Random(own_seed), seed=own_seed
    )
    return EvaluatedEpisode(
        task=planned.task,
        task_type=episode.task_type,
        success=episode.success,
        reward=episode.reward,
        turns=len(episode.turns) + len(episode.conversation),
        scores=dict(episode.scores),
        set=planned.set.name,
        index=planned.index,
        sample=planned.sample,
    )


def build_results(
    config: Config,
    model: str,
    episodes: Sequence[EvaluatedEpisode],
    dropped: Mapping[str, int],
) -> dict[str, Any]:
    """The figures of an evaluation, as eval.json has them.

    Where sets have names, `sets` has the figures of each, and the first one's are the evaluation's.
    `dropped`: episodes of each set that were. Shares and means have 95 % intervals, over tasks:
    as in telemetry/analysis/repeated_trials.py, and the normal one.
    """
    figures_by_set = {}
    for planned in config.evaluation_plan().sets:
        of_set = [episode for episode in episodes if episode.set == planned.name]
        figures = _build_figures(of_set, planned.samples, plays_tokens=model != EXPERT)
        figures_by_set[planned.name] = {"dropped": dropped.get(planned.name, 0), **figures}
    results: dict[str, Any] = {"model": model, "environment": config.env.name}
    if model != EXPERT:
        results["decoding"] = config.decoding(evaluation=True)._asdict()
    results |= next(iter(figures_by_set.values()))
    if config.eval.sets:
        results["sets"] = figures_by_set
    results["settings"] = values_of(config)
    results["versions"] = package_versions()
    results["tasks"] = msgspec.to_builtins(list(episodes))
    return results


def _build_figures(
    episodes: Sequence[EvaluatedEpisode], samples: int, plays_tokens: bool
) -> dict[str, Any]:
    """The figures of the episodes of a set; `samples`: episodes that its plan has of each task."""
    types = sorted({episode.task_type for episode in episodes})
    turns = sum(episode.turns for episode in episodes)
    scores = sorted({name for episode in episodes for name in episode.scores})
    figures: dict[str, Any] = {
        "episodes": len(episodes),
        "samples": samples,
        "success": _share(episodes),
        "pass_at": {str(k): _share(episodes, k) for k in reported_ks(samples)},
        "success_by_type": {
            name: _share([e for e in episodes if e.task_type == name]) for name in types
        },
        "reward": _mean(episodes, lambda episode: episode.reward),
        "turns": _mean(episodes, lambda episode: float(episode.turns)),
        "scores": {
            name: _mean([e for e in episodes if name in e.scores], lambda e, n=name: e.scores[n])
            for name in scores
        },
    }
    if plays_tokens and turns:
        figures["tokens_per_turn"] = sum(episode.tokens for episode in episodes) / turns
        figures["cut_off_share"] = sum(episode.cut_off for episode in episodes) / turns
        figures["invalid_share"] = sum(episode.invalid for episode in episodes) / turns
    return figures


Figure = dict[str, float | int | None]
"""A mean, its interval, and the tasks that it is over."""

NO_FIGURE: Figure = {"mean": None, "low": None, "high": None, "count": 0}


def _by_task(episodes: Sequence[EvaluatedEpisode]) -> list[list[EvaluatedEpisode]]:
    """The episodes of each task."""
    episodes_by_task: dict[tuple[str, int], list[EvaluatedEpisode]] = {}
    for episode in episodes:
        episodes_by_task.setdefault((episode.set, episode.index), []).append(episode)
    return list(episodes_by_task.values())


def _share(episodes: Sequence[EvaluatedEpisode], k: int = 1) -> Figure:
    """The share of tasks that one of `k` episodes solves."""
    trials = [
        Trials(sum(e.success for e in of_task), len(of_task)) for of_task in _by_task(episodes)
    ]
    estimate = estimate_pass_at_k(trials, k)
    if estimate is None:
        return NO_FIGURE
    mean, low, high, tasks = estimate
    return {"mean": mean, "low": low, "high": high, "count": tasks}


def _mean(
    episodes: Sequence[EvaluatedEpisode], value_of: Callable[[EvaluatedEpisode], float]
) -> Figure:
    """The mean over tasks, each of which counts with the mean of its episodes."""
    values = [fmean(map(value_of, of_task)) for of_task in _by_task(episodes)]
    if not values:
        return NO_FIGURE
    mean, low, high = mean_interval(values)
    return {"mean": mean, "low": low, "high": high, "count": len(values)}


def _show(results: Mapping[str, Any], console: Console) -> None:
    figures_by_set = results.get("sets") or {"held-out tasks": results}
    for name, figures in figures_by_set.items():
        console.print(_build_table(name, figures))
        for line in _notes(figures, results["settings"]):
            console.print(line, highlight=False, soft_wrap=True)


def _build_table(name: str, figures: Mapping[str, Any]) -> Table:
    """The table of a set of tasks."""
    table = Table(name, "played", "mean", "95 % interval", box=None)
    table.add_row("success", *_share_cells(figures["success"]))
    for k, share in figures["pass_at"].items():
        table.add_row(f"pass@{k}", *_share_cells(share))
    for task_type, share in figures["success_by_type"].items():
        table.add_row(f"  {task_type}", *_share_cells(share))
    for measure in ("reward", "turns"):
        table.add_row(measure, *_mean_cells(figures[measure]))
    for score, mean in figures["scores"].items():
        table.add_row(f"score {score}", *_mean_cells(mean))
    return table


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


def _notes(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Sentences on what the table of a set does not show."""
    notes = []
    if results["samples"] > 1:
        notes.append(f"each task was played {results['samples']} times, and counts once")
    if results["dropped"]:
        notes.append(f"{results['dropped']} episodes were dropped, and count for nothing")
    if results.get("cut_off_share"):
        notes.append(
            f"{results['cut_off_share']:.1%} of the turns were cut off at sampling.max_tokens "
            f"({settings['sampling.max_tokens']})"
        )
    if results.get("invalid_share"):
        notes.append(f"{results['invalid_share']:.1%} of the turns had no valid action")
    return notes


def _write(results: Mapping[str, Any], output: Path, console: Console) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, json.dumps(results, indent=1) + "\n", "--output")
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)
