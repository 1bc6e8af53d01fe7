"""For all tests: what takes long is made once."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

# Workers compute beside each other and beside the processes that they start: threads of one that
# wait for a core hold all of them up.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Fixtures, here so that all tests share one engine.
from tests.fixtures import SHARED_VARIABLE, shared_directory
from tests.fixtures.engines import engine, policies, real_engine  # noqa: F401

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

ON_SHARED_VLLM = re.compile(r"\[(.*-)?vllm[-\]]")
"""Found in the names of tests that take `engine` or `bench` with vLLM's server."""

STARTS_VLLM = {"test_end_to_end.py", "test_engine_experts.py", "test_engine_rule.py"}
"""Files with tests that start a vLLM of their own."""

IMPORTS_MUCH = re.compile(
    r"^(from|import) (vllm|gymnasium|reasoning_gym|skyrl_gym|textarena)\b", re.MULTILINE
)

# Tests play the environments' own data, wherever the machine has others.
for _variable in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
    os.environ.pop(_variable, None)

# No deadline: how long an example takes says what else the machine does.
settings.register_profile("foray", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=10)
settings.load_profile("foray")


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a policy as run_fixtures.SMALL describes it, random weights."""
    from tests.fixtures.runs import job_in, small_config  # torch, which not every test needs

    return Path(job_in(tmp_path_factory.mktemp("small") / "job", small_config()).model_dir)


@pytest.fixture(scope="session")
def imitating() -> dict[str, str]:
    """Return settings of a policy that acts validly now and then.

    Turns differ in their advantages. It is warm-started once for each length of episodes.
    """
    return {
        "warm_start__episodes": "200",
        "warm_start__threads": "1",
        "run__cache_dir": str(shared_directory() / "cache"),
        "sampling__max_tokens": "32",
    }


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory that workers share, before there are any."""
    if SHARED_VARIABLE not in os.environ:
        directory = tempfile.mkdtemp(prefix="foray-tests-")
        os.environ[SHARED_VARIABLE] = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of the quick profile what imports a package that takes as long as many tests."""
    if collection_path.suffix != ".py" or config.getoption("--hypothesis-profile") != "quick":
        return None
    return IMPORTS_MUCH.search(collection_path.read_text()) is not None or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among what is imported and collected: a million objects, which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or extensions miss at the end what nobody has freed
        gc.enable()


def runs_vllm(name: str) -> bool:
    """Tell by a test's name whether it needs vLLM's server."""
    file = Path(name.partition("::")[0]).name
    return file in STARTS_VLLM or ON_SHARED_VLLM.search(name) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests on vLLM first, then files with slow tests.

    One that begins late keeps one worker busy when the others have nothing left to do.
    """
    order = {item.path: 3 for item in items}
    for item in items:
        if item.get_closest_marker("real_engine") and not runs_vllm(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid}: name its file in STARTS_VLLM")
        if item.path.name in STARTS_VLLM:
            order[item.path] = 0
        elif runs_vllm(item.nodeid):
            order[item.path] = 1
        elif item.get_closest_marker("slow"):
            order[item.path] = min(order[item.path], 2)
    items.sort(key=lambda item: order[item.path])


def pytest_collection_finish() -> None:
    """Let messages of torch's loggers reach the root.

    pytest gives its handlers, three times a test, to each of the fifty that do not.
    """
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "torch":
            logging.getLogger(name).propagate = True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadFileScheduling | None:
    """Make the scheduler of `--dist loadfile`: all tests on the shared vLLM are as one file.

    So are all that start a vLLM of their own. Two workers have them, so that memory has to hold the
    servers of one test, and the shared one.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneEngineEach(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if ON_SHARED_VLLM.search(nodeid):
                return "the shared vLLM"
            if runs_vllm(nodeid):
                return "a vLLM of its own"
            return super()._split_scope(nodeid)

    return OneEngineEach(config, log)
