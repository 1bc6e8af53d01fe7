"""`python run.py replay --train RUN`: the recorded episodes of a run train its policy again,
without engine or actors.

As many updates (unless `run.max_updates` says otherwise) on the same batches in the same order,
from the same warm-started policy, with the learner's settings as recorded or as given: the way to
debug the learner, and to compare corrections on equal data. On one machine the result is the same
to the bit each time. What the policy would have played with the other weights is not known: the
data stays that of the recorded run.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from config import Config, ConfigError, Job
from config.resolve import full_name, resolve
from learner.data.episode_log import first_offset, read_group_order
from learner.data.groups import GroupBuffer
from learner.data.rollout_metrics import rollout_metrics
from learner.training import Training
from protocol.messages import Stats, Trajectory
from supervisor.cli.replay import LOG, read_episodes, recorded_job
from supervisor.interrupts import interrupting_signals
from supervisor.job import check_run_dir, default_run_dir, save_job, write_settings
from telemetry.collector import Collector
from telemetry.progress import Progress
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics

CHANGEABLE = ("learner.", "run.")


def retrain(run_dir: Path, overrides: dict[str, str], console: Console) -> Path:
    """Train again on what `run_dir` recorded; returns the new run directory (`run.dir`), with
    metrics and the last checkpoint. After Ctrl-C these are there, too, and KeyboardInterrupt is
    raised.

    ConfigError for a directory without episodes, or without its first ones, and for settings that
    would change nothing here.
    """
    started = time.monotonic()
    job = new_job(run_dir, overrides)
    new = Path(job.run_dir)
    run = job.config.run
    console.print(f"run directory: {new}", highlight=False)
    new.mkdir(parents=True, exist_ok=True)
    write_settings(job)
    save_job(job)
    collector = Collector(
        new, min_effective_sample_size=job.config.learner.min_effective_sample_size
    )

    def report(event: str, **values: float | str) -> None:
        collector.handle(Stats(source="learner", event=event, values=values))
        progress.tick()

    with Progress(collector.state, run, console) as progress:
        report("phase", phase="starting")
        training = Training.begin(
            job, lambda phase, done, of: report("phase", phase=phase, done=done, of=of)
        )
        report("phase", phase="training")
        size = sum(file.stat().st_size for file in (run_dir / LOG).iterdir())
        with _ctrl_c() as interrupted:
            for end, batch in batches(run_dir / LOG, job.config):
                over = (
                    training.update_number == run.max_updates
                    or 0 < run.max_tokens <= training.tokens
                )
                if (
                    over
                    or interrupted.is_set()
                    or time.monotonic() - started > 60 * run.max_minutes
                ):
                    break
                metrics = training.update(batch, end / size)
                metrics = (
                    rollout_metrics([episode for group in batch for episode in group]) | metrics
                )
                number = training.update_number
                report("update", **metrics | {"update": number, "version": number})
            training.checkpoint()
    collector.close()
    console.print(f"{training.update_number} updates from {run_dir}", highlight=False)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return new


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that an update is finished and what was trained is kept;
    a second one stops at once."""
    interrupted = threading.Event()

    def first(*_: object) -> None:
        interrupted.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, first) for number in interrupting_signals()}
    try:
        yield interrupted
    finally:
        restore()


def new_job(run_dir: Path, overrides: dict[str, str]) -> Job:
    """The recorded job with other settings of the learner, in a run directory of its own."""
    full = {full_name(name): text for name, text in overrides.items()}
    for name in {"learner.rollback", "learner.ranks"} & full.keys():
        raise ConfigError(
            f"replay --train: {name} is for runs; here one process makes every update"
        )
    for name in full:
        if not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"replay --train: {name} changes nothing about recorded episodes; settings of "
                "learner and run do"
            )
    recorded = recorded_job(run_dir, "replay --train")
    new = Path(full.get("run.dir", "") or default_run_dir())
    updates = max(
        (
            line["update"]
            for line in read_metrics(run_dir / METRICS_FILE)
            if line["kind"] == "update"
        ),
        default=0,
    )
    as_many = {
        "run.max_updates": str(updates),
        "run.max_tokens": "0",
        "run.max_minutes": "1000000",
        "learner.rollback": "0",
        "learner.ranks": "1",
    }
    config = resolve(run_dir / "config.toml", as_many | full | {"run.dir": str(new)})
    if config.learner.group_size != recorded.config.learner.group_size:
        raise ConfigError(
            f"learner.group_size: the groups of {run_dir} have "
            f"{recorded.config.learner.group_size} episodes"
        )
    if first_offset(run_dir / LOG):
        raise ConfigError(
            f"replay --train: the first episodes of {run_dir} are gone (learner.log_gb); nothing "
            "can be trained from its start"
        )
    check_run_dir(new)
    return msgspec.structs.replace(recorded, config=config, run_dir=str(new), resume=False)


def batches(log: Path, config: Config) -> Iterator[tuple[int, list[list[Trajectory]]]]:
    """(Where in the log it was complete, the groups), as the learner took them; those that it did
    not come to, in order of admission."""
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
