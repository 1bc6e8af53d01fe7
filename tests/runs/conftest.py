"""Runs that several tests look into, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Job
from tests.fixtures.runs import play_serially, small_config


@pytest.fixture(scope="session")
def acting_run(imitating: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Job of a run of two updates whose turns are cut as soon as they think, and sampled again."""
    acting = {
        "control__t2po__epsilon": "10",
        "control__t2po__min_thinking": "2",
        "control__t2po__window": "0",
        "control__t2po__eta": "10",
        "control__t2po__max_resamples": "1",
    }
    config = small_config(**imitating | acting, run__max_updates="2", env__max_turns="4")
    return play_serially(tmp_path_factory.mktemp("acting") / "job", config)


@pytest.fixture(scope="session")
def acting_dir(acting_run: Job) -> Path:
    """Directory of `acting_run`."""
    return Path(acting_run.run_dir)


@pytest.fixture(scope="session")
def learning_run(imitating: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Job of a run of two updates that change much, with a checkpoint of each."""
    learning = {"learner__learning_rate": "1e-3", "learner__checkpoint_every": "1"}
    config = small_config(
        **imitating | learning, run__max_updates="2", env__max_turns="4", eval__episodes="2"
    )
    return play_serially(tmp_path_factory.mktemp("learning") / "job", config)
