"""Make the tiny policy of a run, so that an engine can load it.

`python -m learner.warm_start.build JOB` writes random weights and a tokenizer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from config import Job
from learner.warm_start.demonstrations import NoDemonstrations, play_demonstrations
from learner.warm_start.tiny import build_tiny

TOKENIZER_EPISODES = 500
"""Demonstrations that the tokenizer learns its words from; more of them change nothing."""


def build_policy(job: Job) -> None:
    """Write the policy to the job's model directory, unless it is there."""
    directory = Path(job.model_dir)
    if directory.exists():
        return
    config = job.config
    episodes = play_demonstrations(config, TOKENIZER_EPISODES)
    turns = (turn for episode in episodes for turn in episode)
    build_tiny(directory, config.model.tiny, turns, config.run.seed)


if __name__ == "__main__":
    try:
        build_policy(Job.load(Path(sys.argv[1])))
    except NoDemonstrations as error:
        sys.exit(f"error: {error}")
