"""The same update on several ranks as on one: gloo, and processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from config.resolve import resolve
from learner.ranks import Ranks
from learner.training import Training
from learner.warm_start.tiny import build_tiny
from protocol.lifetime import dying_with_parent
from supervisor.run import learner_environments
from tests.fixtures import ROOT
from tests.fixtures.learner import TURNS, job_in
from tests.fixtures.ranks_program import CASES, config_of, groups

TESTS = ROOT / "tests"


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Those of an update that are not times."""
    return {name: value for name, value in metrics.items() if name != "seconds_train"}


def run(directory: Path, *words: str, launch: Sequence[str] = ()) -> None:
    """Run tests/fixtures/ranks_program.py; AssertionError with what it said where it failed."""
    program = str(TESTS / "fixtures" / "ranks_program.py")
    command = [sys.executable, *launch, program, str(directory), *words]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS.parent),
        "PYTHONSAFEPATH": "1",  # beside the program are modules with the names of ours
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=400,
        preexec_fn=dying_with_parent(),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CASE/NAME.pt of a group of one that torchrun starts, and of the program's STAGES."""
    directory = tmp_path_factory.mktemp("ranks")
    for case in CASES:
        build_tiny(directory / case / "policy", config_of({}).model.tiny, TURNS, seed=0)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    run(directory, "one", "begin", launch=torchrun)
    run(directory)
    return directory


def load_found(directory: Path, case: str, name: str) -> dict:
    return torch.load(directory / case / f"{name}.pt", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["one", "two"])
def test_a_group_of_ranks_makes_the_update_that_one_process_makes(
    computed: Path, case: str, name: str
) -> None:
    """Gradients, figures, and weights, those after a resume as well.

    Float sums in another order differ in their last digits. In bfloat16 one process rounds
    elsewhere (autocast), so the group of one is what others are held to.
    """
    alone = load_found(computed, case, "one" if case == "bfloat16" else "single")
    group = load_found(computed, case, name)
    assert alone["gradients"].keys() == group["gradients"].keys() and len(alone["gradients"]) > 10
    for parameter, gradient in alone["gradients"].items():
        torch.testing.assert_close(group["gradients"][parameter], gradient, rtol=1e-3, atol=1e-6)
    for first, second in zip(alone["metrics"], group["metrics"], strict=True):
        assert first.keys() == second.keys()
        assert numbers(second) == pytest.approx(numbers(first), rel=1e-3, abs=1e-5)
    for kind in ("weights", "published"):
        assert alone[kind].keys() == group[kind].keys()
        for weight_name, weight in alone[kind].items():
            torch.testing.assert_close(group[kind][weight_name], weight, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_resumed_by_any_number_of_ranks(computed: Path, case: str) -> None:
    """Two ranks write one, a rank goes on and writes the next, then three: losses agree.

    So does a process by itself that goes on from that of three, but for bfloat16, where it rounds
    elsewhere.
    """
    two = load_found(computed, case, "two")["metrics"]
    one = load_found(computed, case, "two-one")["metrics"]
    three = load_found(computed, case, "one-three")["metrics"]
    assert numbers(one[0]) == pytest.approx(numbers(two[2]), rel=1e-3, abs=1e-5)
    assert numbers(three[0]) == pytest.approx(numbers(one[1]), rel=1e-3, abs=1e-5)
    if case != "bfloat16":
        job = job_in(computed / case, config_of(CASES[case]))
        single = Training.restore(job, lambda *_: None)
        found = single.update(groups(single.update_number))
        assert numbers(found) == pytest.approx(numbers(three[1]), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_in_bfloat16_ranks_keep_float32_weights_and_no_second_copy(computed: Path) -> None:
    """Weights, gradients and moments are float32; layers are cast for their computation alone.

    Under autocast, as in one process by itself, the casts of all layers live until the gradient.
    """
    single, one, two = (load_found(computed, "bfloat16", name) for name in ("single", "one", "two"))
    assert one["dtypes"] == two["dtypes"] == {torch.float32}
    assert single["bfloat16_bytes"] > one["bfloat16_bytes"] == two["bfloat16_bytes"] == 0


def test_each_rank_is_told_its_number_and_meeting_place_as_torchrun_would() -> None:
    """Ranks of several machines meet at learner.host, and count from 0 on each."""
    assert learner_environments(resolve()) == [{}]
    settings = {"learner.ranks": "4", "learner.host": "10.0.0.2"}
    here = learner_environments(resolve(overrides=settings))
    there = learner_environments(resolve(overrides=settings | {"cluster.learner_machines": "2"}))
    for environments, host, local in ((here, "127.0.0.1", "0123"), (there, "10.0.0.2", "0101")):
        assert [variables["RANK"] for variables in environments] == list("0123")
        assert [variables["LOCAL_RANK"] for variables in environments] == list(local)
        assert {variables["WORLD_SIZE"] for variables in environments} == {"4"}
        assert {variables["MASTER_ADDR"] for variables in environments} == {host}
        assert len({variables["MASTER_PORT"] for variables in environments}) == 1


@pytest.mark.parametrize(("size", "items"), [(1, 3), (2, 4), (2, 5), (3, 1), (2, 0)])
def test_every_item_counts_on_one_rank_and_all_ranks_take_equally_many(
    size: int, items: int
) -> None:
    shares = [list(Ranks(rank, size).shard(list(range(items)))) for rank in range(size)]
    assert sorted(item for share in shares for item, counts in share if counts) == list(
        range(items)
    )
    assert len({len(share) for share in shares}) == 1
