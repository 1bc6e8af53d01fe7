"""For all tests: what takes long is made once."""

from __future__ import annotations

import os
from pathlib import Path

# Workers compute beside each other and beside the processes that they start: threads of one that wait for a core hold all of them up.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.engine_fixtures import engine, policies, real_engine  # noqa: F401  fixtures: one engine for all

settings.register_profile("foray", deadline=None)  # how long an example takes says what else the machine does
settings.load_profile("foray")


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a policy as run_fixtures.SMALL describes it, random weights."""
    from run_fixtures import job_in, small_config  # torch, which not every test needs

    return Path(job_in(tmp_path_factory.mktemp("small") / "job", small_config()).model_dir)


@pytest.fixture(scope="session")
def imitating(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a policy that acts validly now and then, so that turns differ in their advantages; warm-started once (for each length
    of episodes)."""
    directory = tmp_path_factory.mktemp("imitating")
    return {
        "warm_start__episodes": "200", "warm_start__threads": "1", "run__cache_dir": str(directory / "cache"),
        "sampling__max_tokens": "32",
    }  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that begins late keeps one worker busy when the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("real_engine")}
    items.sort(key=lambda item: item.path not in slow)
