"""The tap inside vLLM's own V2 sampler, whose Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.fixtures import ROOT

pytest.importorskip("triton", reason="Triton is not installed: vLLM's V2 sampler is made of it")

pytestmark = pytest.mark.slow

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module")
def steps() -> list[dict]:
    """Run `v2_sampler_program`, and return what it prints, by step."""
    path = os.pathsep.join([str(FIXTURES / "triton_on_cpu"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.fixtures.v2_sampler_program"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_tap_v2_in_vllms_sampler_reports_each_watched_row_exactly(steps: list[dict]) -> None:
    for number, step in enumerate(steps):
        assert step["turns"] == ["a", "b"]
        assert step["position"] == [number, number]
        watched = [step["expected_entropy"][row] for row in (0, 2)]
        assert step["entropy"] == pytest.approx(watched, abs=1e-5)


def test_tap_v2_in_vllms_sampler_reports_the_token_sampled_before(steps: list[dict]) -> None:
    assert steps[0]["previous"] == [-1, -1]
    for before, step in pairwise(steps):
        assert step["previous"] == [before["sampled"][row] for row in (0, 2)]


def test_tap_v2_in_vllms_sampler_forces_a_steered_queue_alone(steps: list[dict]) -> None:
    assert [step["forced"] for step in steps] == [[-1, -1], [9, -1], [11, -1], [-1, -1], [-1, -1]]
    assert [step["sampled"][0] for step in steps[1:3]] == [9, 11]


def test_tap_v2_in_vllms_sampler_leaves_log_probs_of_the_policy(steps: list[dict]) -> None:
    """A forced token's is 0; all others are those of the distribution after temperature."""
    for step in steps:
        free = [row for row in range(3) if row != 0 or step["forced"][0] < 0]
        expected = [step["expected"][row] for row in free]
        assert [step["log_probs"][row] for row in free] == pytest.approx(expected, abs=1e-5)
        if 0 not in free:
            assert step["log_probs"][0] == 0.0
