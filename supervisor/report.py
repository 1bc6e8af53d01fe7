"""`python run.py report RUN [RUN ...]`: what runs did, as one HTML file."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from math import nan
from pathlib import Path

from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from config import Config, ConfigError
from learner.checkpoint import latest
from learner.episode_log import read_records
from learner.recorded import token_log_probs, turn_advantages
from protocol.arrays import FLOAT16, unpack
from protocol.messages import Trajectory
from supervisor import settings
from supervisor.options import values_of
from supervisor.replay import LOG, episode_in, read_episodes, recorded_job
from telemetry.metrics_file import METRICS_FILE, read_metrics
from telemetry.pages.episode_view import EpisodeView, view
from telemetry.pages.report import AROUND, RunData, report

SHOWN = 6
"""Episodes of a run, if none is named."""
MOST_WEIGHTS = 1 << 30
"""Bytes of a policy that is asked about the shown episodes."""
LOOKED_AT = 2000
"""Episodes of a run, evenly over it, that are searched for interventions and for episodes to show."""


def write_report(run_dirs: Sequence[Path], output: Path | None, episodes: Sequence[str], console: Console) -> Path:
    """The report of the runs, in `output` (default: report.html in the first of them); `episodes` are names such as t3.1, of each run.

    ConfigError for a directory that is no run, and for an episode that no run has.
    """
    names = short_names(run_dirs)
    runs = [read_run(path, name, episodes, console) for path, name in zip(run_dirs, names, strict=True)]
    for wanted in episodes:
        if not any(found.id == wanted for run in runs for found in run.episodes):
            raise ConfigError(f"report: there is no episode {wanted}; `python run.py replay {run_dirs[0]}` lists them")
    output = output or run_dirs[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report(runs), encoding="utf-8")
    return output


def short_names(run_dirs: Sequence[Path]) -> list[str]:
    """What the runs are called: the last parts of their paths, as many as tell them apart."""
    paths = [path.resolve().parts[1:] for path in run_dirs]
    for count in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("report: a run is named twice")


def read_run(run_dir: Path, name: str, wanted: Sequence[str], console: Console) -> RunData:
    """All that is shown of a run. One that was not finished, or has no episodes, is shown as far as it goes."""
    if not (run_dir / METRICS_FILE).is_file():
        raise ConfigError(f"report: {run_dir} is no run directory with measurements (it has no {METRICS_FILE})")
    config = settings.resolve(run_dir / "config.toml") if (run_dir / "config.toml").is_file() else Config()
    values = values_of(config)
    episodes = list(sampled(run_dir / LOG, wanted, name, console)) if (run_dir / LOG).is_dir() else []
    cuts = [around for episode in episodes for around in interventions(episode)]
    return RunData(name, read_metrics(run_dir / METRICS_FILE), values, cuts, list(views(run_dir, episodes, wanted)))


def sampled(log: Path, wanted: Sequence[str], name: str, console: Console) -> Iterator[Trajectory]:
    """At most LOOKED_AT episodes, evenly over the log, and those that are wanted."""
    count = sum(1 for _ in read_records(log))
    every = max(1, -(-count // LOOKED_AT))
    records = track(read_records(log), f"episodes of {name}", total=count, console=console, transient=True)
    for number, (_, _, frame) in enumerate(records):
        if number % every and not wanted:
            continue
        episode = episode_in(frame, log)
        if episode is not None and (number % every == 0 or episode.key.id in wanted):
            yield episode


def interventions(episode: Trajectory) -> Iterator[list[float]]:
    """M_t around each cut of an episode; NaN where there is no token, or no signal."""
    for turn in episode.turns:
        seen = unpack(turn.kept.uncertainty, FLOAT16).astype(float)
        for event in turn.kept.events:
            if event.kind == "intervene":
                at = [event.position + offset for offset in range(-AROUND, AROUND + 1)]
                yield [float(seen[i]) if 0 <= i < len(seen) else nan for i in at]


def views(run_dir: Path, episodes: Sequence[Trajectory], wanted: Sequence[str]) -> Iterator[EpisodeView]:
    """The wanted episodes, or a few that show something (`choose`), with what the last checkpoint's policy makes of their tokens."""
    chosen = [e for e in episodes if e.key.id in wanted] if wanted else choose(episodes)
    if not chosen:
        return
    job = recorded_job(run_dir, "report")
    tokenizer = Tokenizer.from_file(str(Path(job.model_dir) / "tokenizer.json"))
    known = {
        key: values for group in groups_of(run_dir / LOG, chosen) for key, values in turn_advantages(group, job.config.learner).items()
    }
    policy = last_policy(run_dir)
    judged = dict(zip([e.key for e in chosen], token_log_probs(policy, job.config, chosen), strict=True)) if policy else {}
    for episode in chosen:
        decode_ids = functools.partial(tokenizer.decode, skip_special_tokens=False)
        yield view(episode, decode_ids, known.get(episode.key, ()), judged.get(episode.key, ()))


def choose(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """SHOWN of them: those in which control did most, half of them solved if there are so many."""
    rng = random.Random(0)
    played = [e for e in episodes if e.dropped is None and not e.key.evaluation and e.turns]
    rng.shuffle(played)
    played.sort(key=lambda e: -sum(min(1, len(t.kept.events) + len(t.rejected)) for t in e.turns) / len(e.turns))
    solved, others = ([e for e in played if e.success is success] for success in (True, False))
    half = list(islice(solved, SHOWN // 2))
    return half + list(islice(others, SHOWN - len(half)))


def groups_of(log: Path, episodes: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
    """The whole group of each of the training episodes."""
    groups: dict[int, list[Trajectory]] = {episode.key.group: [] for episode in episodes if not episode.key.evaluation}
    for _, episode in read_episodes(log):
        if not episode.key.evaluation and episode.key.group in groups:
            groups[episode.key.group].append(episode)
    yield from groups.values()


def last_policy(run_dir: Path) -> Path | None:
    """The last checkpoint; None without one, or for a model so large that it would take long to ask."""
    directory = latest(run_dir)
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) if directory else 0
    return directory if size <= MOST_WEIGHTS else None
