"""`python run.py retrain RUN`: train again on recorded episodes, without engine or actors.

The same warm-started policy is trained on the same batches in the same order, with the learner's
settings as recorded or as given. That is the way to debug the learner, and to compare losses on
equal data. On one machine the result is the same to the bit each time. The data stays that of the
recorded run: what a policy of other weights would have played is not known.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from config import Config, ConfigError, Job
from config.options import this_command
from config.resolve import full_name, parse_overrides, resolve
from learner.data.episode_log import first_offset, read_group_order
from learner.data.groups import GroupBuffer
from learner.data.rollout_metrics import rollout_metrics
from learner.training import Training
from protocol.messages import Stats, Trajectory
from supervisor.interrupts import interrupting_signals
from supervisor.job import check_run_dir, default_run_dir, save_job, write_settings
from supervisor.recording import EPISODES_DIR, read_episodes, recorded_job
from telemetry.collector import Collector, open_collector
from telemetry.format import format_updates
from telemetry.progress import Progress
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind
from telemetry.work_clock import ticking

CHANGEABLE = ("learner.", "run.")
"""Prefixes of the settings that may differ from those of the recorded run."""

NOT_FOR_RETRAINING = ("learner.rollback", "learner.ranks")

NO_LIMIT_MINUTES = "1000000"


def main(arguments: list[str]) -> int:
    """Train again on the episodes of a run."""
    parser = argparse.ArgumentParser(
        prog="run.py retrain",
        usage=(
            f"{this_command()} retrain RUN [--learner.SETTING VALUE ...] [--run.SETTING VALUE ...]"
        ),
        description=(
            "Train the policy of a run again on the episodes that it recorded, without engine or "
            "actors. Settings of learner and run may follow. The new run directory is run.dir."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory with episodes")
    options, rest = parser.parse_known_args(arguments)
    retrain(options.run, parse_overrides(rest), Console())
    return 0


def retrain(run_dir: Path, overrides: dict[str, str], console: Console) -> Path:
    """Train again on what `run_dir` recorded; returns the new run directory (`run.dir`).

    It has metrics and the last checkpoint, after Ctrl-C, too, when KeyboardInterrupt is raised.
    Raises ConfigError for a directory without its first episodes, and for settings that would
    change nothing here.
    """
    started_s = time.monotonic()
    log = run_dir / EPISODES_DIR
    job = build_job(run_dir, overrides)
    new_dir = Path(job.run_dir)
    console.print(f"run directory: {new_dir}", highlight=False)
    new_dir.mkdir(parents=True, exist_ok=True)
    write_settings(job)
    save_job(job)
    collector = open_collector(
        new_dir, min_effective_sample_size=job.config.learner.min_effective_sample_size
    )
    lock = threading.Lock()
    with (
        Progress(collector.state, job.config.run, console) as progress,
        ticking(functools.partial(_tick, progress, lock)),
    ):
        report = functools.partial(_report, collector, progress, lock)
        report("phase", phase="starting")
        training = Training.begin(
            job,
            lambda phase, done=None, of=None, /, **figures: report(
                "phase", phase=phase, done=done, of=of, **figures
            ),
        )
        report("phase", phase="training")
        with _first_ctrl_c() as interrupted:
            _train_on_recorded(log, job.config, training, report, interrupted, started_s)
            training.checkpoint()
    collector.close()
    console.print(
        f"{format_updates(training.update_number)} from {run_dir}; "
        f"the new run is in {new_dir}; as a page: "
        f"{this_command()} report {shlex.quote(str(run_dir))} {shlex.quote(str(new_dir))}",
        highlight=False,
        soft_wrap=True,
    )
    if interrupted.is_set():
        raise KeyboardInterrupt
    return new_dir


def _tick(progress: Progress, lock: threading.Lock) -> None:
    """Draw the progress: the clock's thread does, whatever this one computes."""
    with lock:
        progress.tick()


def _report(
    collector: Collector,
    progress: Progress,
    lock: threading.Lock,
    event: str,
    **values: float | str | None,
) -> None:
    with lock:
        collector.handle(Stats(source="learner", event=event, values=values))
        progress.tick()


def _train_on_recorded(
    log: Path,
    config: Config,
    training: Training,
    report: Callable[..., None],
    interrupted: threading.Event,
    started_s: float,
) -> None:
    """Make updates until the log is used up, a limit is reached, or the user interrupts."""
    run = config.run
    size_bytes = sum(file.stat().st_size for file in log.iterdir())
    for end, batch in read_batches(log, config):
        is_over = training.update_number == run.max_updates or 0 < run.max_tokens <= training.tokens
        if is_over or interrupted.is_set() or time.monotonic() - started_s > run.max_seconds():
            break
        metrics = training.update(batch, end / size_bytes)
        episodes = [episode for group in batch for episode in group]
        number = training.update_number
        metrics = rollout_metrics(episodes) | metrics | {"update": number, "version": number}
        report("update", **metrics)


@contextlib.contextmanager
def _first_ctrl_c() -> Iterator[threading.Event]:
    """Have the first Ctrl-C set an event, so that the update is finished; a second one stops."""
    interrupted = threading.Event()

    def handle_first(*_: object) -> None:
        interrupted.set()
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, handle_first) for number in interrupting_signals()}
    try:
        yield interrupted
    finally:
        restore()


def build_job(run_dir: Path, overrides: dict[str, str]) -> Job:
    """The recorded job with other settings of the learner, in a run directory of its own."""
    overrides = {full_name(name): text for name, text in overrides.items()}
    _check_changeable(overrides)
    recorded = recorded_job(run_dir, "retrain")
    new_dir = Path(overrides.get("run.dir", "") or default_run_dir())
    defaults = {
        "run.max_updates": str(_count_updates(run_dir)),
        "run.max_tokens": "0",
        "run.max_minutes": NO_LIMIT_MINUTES,
        "learner.rollback": "0",
        "learner.ranks": "1",
    }
    config = resolve(run_dir / "config.toml", defaults | overrides | {"run.dir": str(new_dir)})
    if config.learner.group_size != recorded.config.learner.group_size:
        raise ConfigError(
            f"learner.group_size: the groups of {run_dir} have "
            f"{recorded.config.learner.group_size} episodes"
        )
    if first_offset(run_dir / EPISODES_DIR):
        raise ConfigError(
            f"retrain: the first episodes of {run_dir} are gone (learner.log_gb); nothing can be "
            "trained from its start"
        )
    check_run_dir(new_dir)
    return msgspec.structs.replace(recorded, config=config, run_dir=str(new_dir), resume=False)


def _check_changeable(overrides: dict[str, str]) -> None:
    """Raise ConfigError for a setting that would change nothing."""
    for name in overrides:
        if name in NOT_FOR_RETRAINING:
            raise ConfigError(f"retrain: {name} is for runs; here one process makes every update")
        if not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"retrain: {name} changes nothing about recorded episodes; settings of learner "
                "and run do"
            )


def _count_updates(run_dir: Path) -> int:
    updates = select_kind(read_metrics(run_dir / METRICS_FILE), "update")
    return max((record["update"] for record in updates), default=0)


def read_batches(log: Path, config: Config) -> Iterator[tuple[int, list[list[Trajectory]]]]:
    """The batches of a log as the learner took them, each with the place where it was complete.

    Groups that the learner did not come to follow in order of admission.
    """
    buffer = GroupBuffer(config.learner.group_size, config.learner.filter_groups, config.learner)
    order = itertools.chain(read_group_order(log.parent), itertools.count())
    following = next(order)
    batch = []
    for end, episode in read_episodes(log):
        if episode.key.evaluation or not buffer.add(episode):
            continue
        buffer.collect_complete()
        while True:
            group = buffer.pop_group(following)
            if group is not None:
                batch.append(group)
            elif following not in buffer.closed:
                break
            following = next(order)
            if len(batch) == config.learner.groups_per_update:
                yield end, batch
                batch = []
