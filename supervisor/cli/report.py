"""`python run.py report RUN [RUN ...]`: what runs did, as one HTML file."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import nan
from pathlib import Path

from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from config import Config, ConfigError
from config.options import values_of
from config.resolve import resolve
from learner.checkpoint import latest
from learner.data.episode_analysis import WITHIN_GROUP, token_log_probs, turn_advantages
from learner.data.episode_log import Records
from protocol.arrays import FLOAT16, unpack
from protocol.files import atomic_write
from protocol.messages import Trajectory
from supervisor.cli.replay import LOG, episode_in, recorded_job
from telemetry.html.episode_view import EpisodeView, build_episode_view
from telemetry.html.report import AROUND, RunData, render_report
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics

SHOWN = 6
"""Episodes of a run, if none is named."""
MOST_WEIGHTS = 1 << 30
"""Bytes of a policy that is asked about the shown episodes."""
LOOKED_AT = 2000
"""Episodes of a run, evenly over it, that are searched for interventions and for episodes to
show."""


def write_report(
    run_dirs: Sequence[Path], output: Path | None, episodes: Sequence[str], console: Console
) -> Path:
    """The report of the runs, in `output` (default: report.html in the first of them); `episodes`
    are names such as t3.1, of each run.

    ConfigError for a directory that is no run, and for an episode that no run has.
    """
    names = short_names(run_dirs)
    runs = [
        read_run(path, name, episodes, console) for path, name in zip(run_dirs, names, strict=True)
    ]
    for wanted in episodes:
        if not any(found.id == wanted for run in runs for found in run.episodes):
            raise ConfigError(
                f"report: there is no episode {wanted}; `python run.py replay {run_dirs[0]}` "
                "lists them"
            )
    output = output or run_dirs[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, render_report(runs), "--output")
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
    """All that is shown of a run.

    One that was not finished, or has no episodes, is shown as far as it goes.
    """
    if not (run_dir / METRICS_FILE).is_file():
        raise ConfigError(
            f"report: {run_dir} is no run directory with measurements (it has no {METRICS_FILE})"
        )
    config = resolve(run_dir / "config.toml") if (run_dir / "config.toml").is_file() else Config()
    values = values_of(config)
    log = run_dir / LOG
    records = Records(log) if log.is_dir() else ()
    with without_collector():
        episodes = dict(sampled(records, log, wanted, name, console))
    cuts = [around for episode in episodes.values() for around in interventions(episode)]
    return RunData(
        name,
        read_metrics(run_dir / METRICS_FILE),
        values,
        cuts,
        list(views(run_dir, records, episodes, wanted)),
    )


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Python's collector looks through all episodes that are kept, again and again: four fifths of
    the time to read 1,500."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sampled(
    records: Sequence[bytes | None], log: Path, wanted: Sequence[str], name: str, console: Console
) -> Iterator[tuple[int, Trajectory]]:
    """(Number of its record, episode) of at most LOOKED_AT, evenly over the log, and of those that
    are wanted, for which all are read."""
    every = max(1, -(-len(records) // LOOKED_AT))
    numbers = range(0, len(records), 1 if wanted else every)
    for number in track(numbers, f"episodes of {name}", console=console, transient=True):
        episode = _episode(records, number, log)
        if episode is not None and (number % every == 0 or episode.key.id in wanted):
            yield number, episode


def _episode(records: Sequence[bytes | None], number: int, log: Path) -> Trajectory | None:
    return None if (frame := records[number]) is None else episode_in(frame, log)


def interventions(episode: Trajectory) -> Iterator[list[float]]:
    """M_t around each cut of an episode; NaN where there is no token, or no signal."""
    for turn in episode.turns:
        seen = unpack(turn.kept.uncertainty, FLOAT16).astype(float)
        for event in turn.kept.events:
            if event.kind == "intervene":
                at = [event.position + offset for offset in range(-AROUND, AROUND + 1)]
                yield [float(seen[i]) if 0 <= i < len(seen) else nan for i in at]


def views(
    run_dir: Path,
    records: Sequence[bytes | None],
    episodes: Mapping[int, Trajectory],
    wanted: Sequence[str],
) -> Iterator[EpisodeView]:
    """The wanted ones of the `episodes` (number of its record -> episode), or a few that show
    something (`choose`), with what the last checkpoint's policy makes of their tokens."""
    found = list(episodes.values())
    chosen = [e for e in found if e.key.id in wanted] if wanted else choose(found)
    if not chosen:
        return
    job = recorded_job(run_dir, "report")
    tokenizer = Tokenizer.from_file(str(Path(job.model_dir) / "tokenizer.json"))
    learner = job.config.learner
    compared = (
        {episode.key.group for episode in chosen if not episode.key.evaluation}
        if learner.algorithm in WITHIN_GROUP
        else set()
    )
    places = {
        episode.key.group: number
        for number, episode in episodes.items()
        if not episode.key.evaluation
    }  # one of each group's
    groups = [
        group_at(records, places[group], run_dir / LOG, learner.group_size) for group in compared
    ]
    known = {
        key: values for group in groups for key, values in turn_advantages(group, learner).items()
    }
    policy = last_policy(run_dir)
    judged = (
        dict(zip([e.key for e in chosen], token_log_probs(policy, job.config, chosen), strict=True))
        if policy
        else {}
    )
    for episode in chosen:
        decode_ids = functools.partial(tokenizer.decode, skip_special_tokens=False)
        yield build_episode_view(
            episode, decode_ids, known.get(episode.key, ()), judged.get(episode.key, ())
        )


def choose(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """SHOWN of them: those in which control did most, half of them solved if there are so many."""
    rng = random.Random(0)
    played = [e for e in episodes if e.drop_reason is None and not e.key.evaluation and e.turns]
    rng.shuffle(played)
    played.sort(
        key=lambda e: (
            -sum(min(1, len(t.kept.events) + len(t.rejected)) for t in e.turns) / len(e.turns)
        )
    )
    solved, others = ([e for e in played if e.success is success] for success in (True, False))
    half = list(islice(solved, SHOWN // 2))
    return half + list(islice(others, SHOWN - len(half)))


def group_at(
    records: Sequence[bytes | None], number: int, log: Path, size: int
) -> list[Trajectory]:
    """The group of the episode of that record: `size` members, or as many as are there. They ended
    at about the same time, so they are looked for from there outwards."""
    group = _episode(records, number, log).key.group
    members: list[Trajectory] = []
    for other in sorted(range(len(records)), key=lambda other: abs(other - number)):
        episode = _episode(records, other, log)
        if episode is not None and not episode.key.evaluation and episode.key.group == group:
            members.append(episode)
        if len(members) == size:
            break
    return members


def last_policy(run_dir: Path) -> Path | None:
    """The last checkpoint; None without one, or for a model so large that it would take long to
    ask."""
    directory = latest(run_dir)
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) if directory else 0
    return directory if size <= MOST_WEIGHTS else None
