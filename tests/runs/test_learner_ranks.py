"""The same update on several ranks as on one: gloo, processes of their own, started by torchrun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import LearnerSection
from learner.ranks import Ranks
from learner.training import Training
from learner.warm_start.tiny import build_tiny
from supervisor.run import learner_environments
from tests.fixtures import ROOT
from tests.fixtures.learner import TURNS, job_in
from tests.fixtures.ranks_program import CASES, config_of, groups

TESTS = ROOT / "tests"


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Those of an update that are not times."""
    return {name: value for name, value in metrics.items() if name != "seconds_train"}


def run(directory: Path, name: str, ranks: int) -> None:
    """tests/fixtures/ranks_program.py, on so many ranks: one start for all cases."""
    launch = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        if ranks > 1
        else []
    )
    command = [
        sys.executable,
        *launch,
        str(TESTS / "fixtures" / "ranks_program.py"),
        str(directory),
        name,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS.parent),
        "PYTHONSAFEPATH": "1",  # beside the program are modules with the names of ours
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CASE/one.pt and CASE/two.pt, and the checkpoints of two ranks."""
    directory = tmp_path_factory.mktemp("ranks")
    for case in CASES:
        build_tiny(directory / case / "policy", config_of({}).model.tiny, TURNS, seed=0)
    run(directory, "one", 1)
    for case in CASES:
        shutil.rmtree(directory / case / "checkpoints")
    run(directory, "two", 2)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_update_that_one_makes(computed: Path, case: str) -> None:
    """Gradients, numbers, and weights, those after a resume as well.

    Float sums in another order differ in their last digits.
    """
    one, two = (
        torch.load(computed / case / f"{name}.pt", weights_only=True) for name in ("one", "two")
    )
    assert one["gradients"].keys() == two["gradients"].keys() and len(one["gradients"]) > 10
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-6)
    for first, second in zip(one["metrics"], two["metrics"], strict=True):
        assert first.keys() == second.keys()
        assert numbers(second) == pytest.approx(numbers(first), rel=1e-3, abs=1e-5)
    for kind in ("weights", "published"):
        assert one[kind].keys() == two[kind].keys()
        for name, weight in one[kind].items():
            torch.testing.assert_close(two[kind][name], weight, rtol=1e-3, atol=2e-5)
    resumed = Training.restore(
        job_in(computed / case, config_of(CASES[case])), lambda *_: None
    )  # the checkpoint of two ranks, on one
    assert numbers(resumed.update(groups(2))) == pytest.approx(
        numbers(two["metrics"][-1]), rel=1e-3, abs=1e-5
    )


def test_each_rank_is_told_its_number_as_torchrun_would() -> None:
    assert learner_environments(LearnerSection()) == [{}]
    first, second = learner_environments(LearnerSection(ranks=2))
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in (first, second)] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


@pytest.mark.parametrize(("size", "items"), [(1, 3), (2, 4), (2, 5), (3, 1), (2, 0)])
def test_every_item_counts_on_one_rank_and_all_ranks_take_equally_many(
    size: int, items: int
) -> None:
    shares = [list(Ranks(rank, size).shard(list(range(items)))) for rank in range(size)]
    assert sorted(item for share in shares for item, counts in share if counts) == list(
        range(items)
    )
    assert len({len(share) for share in shares}) == 1
