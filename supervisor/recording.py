"""Read the episodes that a run recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from config import ConfigError, Job
from learner.data.episode_log import read_records
from protocol.codec import BadFrame, decode
from protocol.messages import Trajectory
from supervisor.models import find_model

EPISODES_DIR = Path("episodes")
"""The directory of a run's episode log, in the run's own."""


def recorded_job(run_dir: Path, command: str) -> Job:
    """The job of a run directory with episodes, which may have come from another machine.

    Raises ConfigError if it is none, or if its model is not to be had here; `command` is named in
    the message.
    """
    for name in ("job.json", "config.toml", str(EPISODES_DIR)):
        if not (run_dir / name).exists():
            raise ConfigError(
                f"{command}: {run_dir} is no run directory with episodes (it has no {name})"
            )
    job = Job.load(run_dir / "job.json")
    if Path(job.model_dir).exists():
        return job
    model_dir = find_model(job.config, Console(stderr=True)) or run_dir / "policy"
    return msgspec.structs.replace(job, model_dir=str(model_dir))


def read_episodes(log: Path) -> Iterator[tuple[int, Trajectory]]:
    """The episodes of a log in the order in which they ended, each with the end of its record.

    Raises ConfigError for a log that we cannot read.
    """
    for _, end, frame in read_records(log):
        episode = decode_episode(frame, log)
        if episode is not None:
            yield end, episode


def decode_episode(frame: bytes, log: Path) -> Trajectory | None:
    """The episode of a record of `log`; None for a record of something else.

    Raises ConfigError if we cannot read it.
    """
    try:
        message = decode(frame)
    except BadFrame as error:
        raise ConfigError(
            f"{log} was written by another version of this project: {error}"
        ) from None
    if not isinstance(message, Trajectory):
        return None
    return message
