"""What benchmarks.load puts in the place of training: it has all that the learner asks of the real
one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from run_fixtures import job_in, small_config

import learner.learner
from benchmarks.load_processes import Training


def test_the_stand_in_has_all_that_the_learner_asks_of_training(tmp_path: Path) -> None:
    source = inspect.getsource(learner.learner)
    asked = set(re.findall(r"self\.training\.(\w+)", source)) | set(
        re.findall(r"self\._do\(\"(\w+)\"", source)
    )
    stand_in = Training(job_in(tmp_path / "job", small_config()), stall=0.0)
    assert {"update", "checkpoint", "began"} <= asked and {
        name for name in asked if not hasattr(stand_in, name)
    } == set()
