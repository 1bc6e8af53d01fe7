"""`python run.py report RUN [RUN ...]`: what runs did, as one HTML file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from config import Config, ConfigError, Job
from config.options import this_command, values_of
from config.resolve import read_record
from learner.checkpoint import latest
from learner.data.episode_analysis import WITHIN_GROUP, token_log_probs, turn_advantages
from learner.data.episode_log import Records
from protocol.arrays import FLOAT16, finite_or_none, unpack
from protocol.files import atomic_write
from protocol.messages import EpisodeKey, Trajectory
from supervisor.recording import EPISODES_DIR, decode_episode, recorded_job
from telemetry.html.episode_view import EpisodeView, build_episode_view
from telemetry.html.report import AROUND, RunData, render_report
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics
from telemetry.sinks.starts_file import read_starts
from telemetry.sinks.status_file import read_status
from telemetry.summary import read_summary
from telemetry.work_clock import WorkClock, show_work

EPISODES_SHOWN = 6
"""Episodes of a run that are shown, if none is named."""

MAX_POLICY_BYTES = 1 << 30
"""Size of the largest policy that is asked about the shown episodes."""

EPISODES_SEARCHED = 2000
"""Episodes of a run, evenly over it, that are searched for interventions and for some to show."""


def main(arguments: list[str]) -> int:
    """Write a report of runs."""
    parser = argparse.ArgumentParser(
        prog="run.py report", description="What runs did, as one HTML file that needs no network."
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories, finished or not"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the first of them"
    )
    parser.add_argument(
        "--episodes",
        default="",
        metavar="NAMES",
        help="episodes to show, such as t3.1,t4.0 (default: a few)",
    )
    options = parser.parse_args(arguments)
    console = Console()
    names = [name.strip() for name in options.episodes.split(",") if name.strip()]
    with show_work("reading") as work:
        output = write_report(options.runs, options.output, names, work)
    page = output.resolve().as_uri()
    console.print(f"wrote {output}\nopen  {page}", highlight=False, markup=False, soft_wrap=True)
    return 0


def write_report(
    run_dirs: Sequence[Path], output: Path | None, episode_names: Sequence[str], work: WorkClock
) -> Path:
    """Write the report of runs, by default as report.html in the first of them; returns its path.

    `episode_names`, such as t3.1, are of each run. Raises ConfigError for a directory that is no
    run, and for an episode that no run has.
    """
    names = short_names(run_dirs)
    for run_dir in run_dirs:
        _check_run(run_dir)
    output = output or run_dirs[0] / "report.html"
    _check_place(output)
    runs = [
        read_run(path, name, episode_names, work)
        for path, name in zip(run_dirs, names, strict=True)
    ]
    shown = {view.id for run in runs for view in run.episodes}
    for name in episode_names:
        if name not in shown:
            raise ConfigError(
                f"report: there is no episode {name}; `{this_command()} replay {run_dirs[0]}` "
                "lists them"
            )
    work.begin("drawing the page")
    atomic_write(output, render_report(runs), "--output")
    return output


def _check_run(run_dir: Path) -> None:
    """Raise ConfigError for a directory without measurements."""
    if not (run_dir / METRICS_FILE).is_file():
        raise ConfigError(
            f"report: {run_dir} is no run directory with measurements (it has no {METRICS_FILE})"
        )


def _check_place(output: Path) -> None:
    """Make the directory of the page. Raises ConfigError where none can be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {output.parent} cannot be made: {error.strerror}") from None
    if not os.access(output.parent, os.W_OK):
        raise ConfigError(f"--output: {output.parent} cannot be written to; give another file")


def short_names(run_dirs: Sequence[Path]) -> list[str]:
    """Name the runs by the last parts of their paths, as many as tell them apart."""
    paths = [path.resolve().parts[1:] for path in run_dirs]
    for count in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("report: a run is named twice")


def read_run(run_dir: Path, name: str, episode_names: Sequence[str], work: WorkClock) -> RunData:
    """Read all that is shown of a run.

    One that was not finished, or has no episodes, is shown as far as it goes.
    """
    config = Config()
    if (run_dir / "config.toml").is_file():
        config = read_record(run_dir / "config.toml")
    log = run_dir / EPISODES_DIR
    records = ()
    if log.is_dir():
        records = Records(log)
    with pause_garbage_collection():
        episodes = dict(sample_episodes(records, log, episode_names, name, work))
    cuts = [window for episode in episodes.values() for window in intervention_windows(episode)]
    return RunData(
        name,
        read_metrics(run_dir / METRICS_FILE),
        values_of(config),
        cuts,
        list(build_views(run_dir, records, episodes, episode_names, work)),
        read_summary(run_dir),
        read_status(run_dir),
        str(run_dir),
        read_starts(run_dir),
    )


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running while inside.

    It looks through all episodes that are kept, again and again: four fifths of the time to read
    1,500.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sample_episodes(
    records: Sequence[bytes | None],
    log: Path,
    episode_names: Sequence[str],
    run_name: str,
    work: WorkClock,
) -> Iterator[tuple[int, Trajectory]]:
    """Sample EPISODES_SEARCHED episodes evenly over a log, each with the number of its record.

    Named episodes come too; for these all records are read.
    """
    stride = max(1, math.ceil(len(records) / EPISODES_SEARCHED))
    numbers = range(0, len(records), stride)
    if episode_names:
        numbers = range(len(records))
    for number in work.track(numbers, f"reading episodes of {run_name}"):
        episode = _read_episode(records, number, log)
        if episode is not None and (number % stride == 0 or episode.key.id in episode_names):
            yield number, episode


def _read_episode(records: Sequence[bytes | None], number: int, log: Path) -> Trajectory | None:
    frame = records[number]
    if frame is None:
        return None
    return decode_episode(frame, log)


def intervention_windows(episode: Trajectory) -> Iterator[list[float | None]]:
    """M_t around each cut of an episode; None where there is no token, or no signal."""
    for turn in episode.turns:
        uncertainty = unpack(turn.kept.uncertainty, FLOAT16).astype(float)
        for event in turn.kept.events:
            if event.kind == "intervene":
                positions = range(event.position - AROUND, event.position + AROUND + 1)
                yield [_value_at(uncertainty, position) for position in positions]


def _value_at(values: np.ndarray, position: int) -> float | None:
    """A value of float [T]; None outside, and where it is not finite."""
    if not 0 <= position < len(values):
        return None
    return finite_or_none(values[position])


def build_views(
    run_dir: Path,
    records: Sequence[bytes | None],
    episodes: Mapping[int, Trajectory],
    episode_names: Sequence[str],
    work: WorkClock,
) -> Iterator[EpisodeView]:
    """Build the views of named episodes, or of a few that `choose_episodes` finds worth showing.

    `episodes` are by the numbers of their records. A view has what the last checkpoint's policy
    makes of the tokens.
    """
    if episode_names:
        chosen = [episode for episode in episodes.values() if episode.key.id in episode_names]
    else:
        chosen = choose_episodes(list(episodes.values()))
    if not chosen:
        return
    job = recorded_job(run_dir, "report")
    tokenizer = Tokenizer.from_file(str(Path(job.model_dir) / "tokenizer.json"))
    decode_ids = functools.partial(tokenizer.decode, skip_special_tokens=False)
    work.begin("computing advantages")
    advantages = _compute_advantages(run_dir, job, records, episodes, chosen)
    work.begin("asking the last checkpoint's policy about tokens")
    log_probs = _compute_log_probs(run_dir, job, chosen)
    for episode in chosen:
        yield build_episode_view(
            episode,
            decode_ids,
            advantages.get(episode.key, ()),
            log_probs.get(episode.key, ()),
        )


def _compute_advantages(
    run_dir: Path,
    job: Job,
    records: Sequence[bytes | None],
    episodes: Mapping[int, Trajectory],
    chosen: Sequence[Trajectory],
) -> dict[EpisodeKey, Sequence[float]]:
    """Advantages of the turns of chosen episodes, where they follow from an episode's group."""
    learner = job.config.learner
    if learner.algorithm.type not in WITHIN_GROUP:
        return {}
    record_of_group = {
        episode.key.group: number
        for number, episode in episodes.items()
        if not episode.key.evaluation
    }
    advantages = {}
    for group in {episode.key.group for episode in chosen if not episode.key.evaluation}:
        members = group_at(
            records, record_of_group[group], run_dir / EPISODES_DIR, learner.group_size
        )
        advantages |= turn_advantages(members, learner)
    return advantages


def _compute_log_probs(
    run_dir: Path, job: Job, chosen: Sequence[Trajectory]
) -> dict[EpisodeKey, Sequence]:
    """Log-probs of chosen episodes' tokens by the last checkpoint's policy, if there is one."""
    policy = last_policy(run_dir)
    if policy is None:
        return {}
    keys = [episode.key for episode in chosen]
    return dict(zip(keys, token_log_probs(policy, job.config, chosen), strict=True))


def choose_episodes(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """Choose EPISODES_SHOWN of the episodes in which control did most.

    Half of them are solved, if there are so many.
    """
    candidates = [e for e in episodes if e.drop_reason is None and not e.key.evaluation and e.turns]
    random.Random(0).shuffle(candidates)
    candidates.sort(key=_controlled_share, reverse=True)
    solved = [episode for episode in candidates if episode.success]
    unsolved = [episode for episode in candidates if not episode.success]
    chosen = solved[: EPISODES_SHOWN // 2]
    return chosen + unsolved[: EPISODES_SHOWN - len(chosen)]


def _controlled_share(episode: Trajectory) -> float:
    """Share of an episode's turns in which control acted."""
    return sum(bool(t.kept.events or t.rejected) for t in episode.turns) / len(episode.turns)


def group_at(
    records: Sequence[bytes | None], number: int, log: Path, size: int
) -> list[Trajectory]:
    """The group of the episode of record `number`: `size` members, or as many as are there.

    They ended at about the same time, so they are looked for from there outwards.
    """
    asked = _read_episode(records, number, log)
    if asked is None:
        raise ValueError(f"record {number} of {log} cannot be read")
    group = asked.key.group
    members: list[Trajectory] = []
    for other in sorted(range(len(records)), key=lambda other: abs(other - number)):
        episode = _read_episode(records, other, log)
        if episode is not None and not episode.key.evaluation and episode.key.group == group:
            members.append(episode)
        if len(members) == size:
            break
    return members


def last_policy(run_dir: Path) -> Path | None:
    """The last checkpoint; None without one, or for a model so large that it would take long."""
    checkpoint = latest(run_dir)
    if checkpoint is None:
        return None
    size_bytes = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    if size_bytes > MAX_POLICY_BYTES:
        return None
    return checkpoint
