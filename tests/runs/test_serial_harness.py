"""A harness is trained: its requests are the turns of a run like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.arrays import INT32, unpack
from tests.fixtures.harnesses import harness_code
from tests.fixtures.runs import select_trained, serial_run

pytestmark = pytest.mark.slow


def test_harness_of_the_guide_is_trained_for_two_updates(
    tmp_path: Path, small_policy: Path
) -> None:
    (tmp_path / "sums.py").write_text(harness_code())
    settings = {
        "env__name": str(tmp_path / "sums.py"),
        "model__name": str(small_policy),
        "engine__max_model_len": "1024",
    }
    summary, trajectories, metrics = serial_run(tmp_path / "run", **settings)
    assert summary["ended"] == "finished"
    assert [line["update"] for line in metrics if line["kind"] == "update"] == [1, 2]
    trained = select_trained(trajectories)
    assert {len(episode.turns) for episode in trained} == {3}
    for episode in trained:
        first, second = [unpack(turn.prompt, INT32).tolist() for turn in episode.turns[:2]]
        said = unpack(episode.turns[0].kept.tokens, INT32).tolist()
        assert second[: len(first) + len(said)] == first + said
