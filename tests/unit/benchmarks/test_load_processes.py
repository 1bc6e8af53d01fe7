"""The stand-in of benchmarks.load for training has all that the learner asks of the real one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from benchmarks.load_processes import Training
from learner import learner, rank_rpc, run_limits, training_host
from tests.fixtures.runs import job_in, small_config


def test_the_stand_in_has_all_that_the_learner_asks_of_training(tmp_path: Path) -> None:
    modules = (learner, rank_rpc, run_limits, training_host)
    source = "".join(map(inspect.getsource, modules))
    asked = set(re.findall(r"\b(?<!learner\.)training\.([a-z]\w+)", source))
    stand_in = Training(job_in(tmp_path / "job", small_config()), stall=0.0)
    assert {"update", "begin_checkpoint", "began"} <= asked
    assert {name for name in asked if not hasattr(stand_in, name)} == set()
